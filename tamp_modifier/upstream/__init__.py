"""Everything of llm-compressor and transformers that is patched or reached into."""
