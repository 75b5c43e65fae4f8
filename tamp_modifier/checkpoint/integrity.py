"""Whether a checkpoint is what its config.json says, by names before and by content while reading.

The commands, the transformers plugin and the vLLM plugin all ask here. Before any weight is read,
`Integrity` compares the names in the headers of the files with the marker. While the weights are
read, each is compared with its checksum and its number of non-zeros. Files that were packed before
0.2 carry no checksums; of them, what the marker has is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from tamp_modifier.checkpoint.files import Header, dense_name, read_header, shards
from tamp_modifier.checkpoint.marker import CONFIG_KEY, Marker
from tamp_modifier.checkpoint.memory import require_memory
from tamp_modifier.messages import some
from tamp_modifier.sparse.format import STORAGE_DTYPES, nonzero
from tamp_modifier.sparse.serialization import (
    HEADER_SUFFIX,
    packed_checksum,
    tensor_checksum,
)

_KINDS = (".weight", ".weight_packed")
"""What follows the name of a Linear in the name of its weight."""


def linear_name(name: str) -> str:
    """Return the name of a Linear, of the name of its weight or of its words of 4-bit codes."""
    return next((name.removesuffix(kind) for kind in _KINDS if name.endswith(kind)), name)


def stored_checksum(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return the checksum of what is stored of the tensor `name`.

    Of a packed weight it is the one in its header, which `sparse.from_tensors` compares with mask
    and values; of any other tensor see `sparse.serialization.tensor_checksum`.
    """
    header = tensors.get(name + HEADER_SUFFIX)
    return tensor_checksum(tensors[name]) if header is None else packed_checksum(header)


def check_checksum(name: str, found: int, expected: int | None) -> None:
    """Compare a checksum with the one that config.json lists; None lists none.

    Raises:
        ValueError: they differ.
    """
    if expected is not None and found != expected:
        raise ValueError(
            f"{name} is damaged or was changed after packing: its checksum is {found}, "
            f"config.json says {expected}"
        )


class Integrity:
    """Compare the tensors of a checkpoint with the marker in its config.json.

    Args:
        where: the folder, for messages.
        marker: what config.json says; an empty `Marker` if it has none.
        header: of all files.

    Raises:
        ValueError: the names in the files are not those of config.json, or a weight does not fit
            into memory; names them.
    """

    def __init__(self, where: object, marker: Marker, header: Header) -> None:
        self._where = where
        self._linears = marker.linears or {}
        self._checksums = marker.checksums
        self._seen: set[str] = set()
        self.stored = frozenset(header)
        names = {dense_name(name) for name in header}
        self._check_layout(marker, {n for n in names if n not in self.stored})
        self._check_names(marker, names)
        self.sizes = require_memory(header, where)

    def _check_layout(self, marker: Marker, packed: set[str]) -> None:
        if packed and marker.layout != "packed":
            raise ValueError(
                f"{self._where} holds packed weights ({some(sorted(packed), 3)}), but config.json "
                f"does not say so: {CONFIG_KEY} must have layout packed"
            )
        found = {linear_name(name) for name in packed}
        if marker.layout == "packed" and found != set(self._linears):
            gone, new = sorted(set(self._linears) - found), sorted(found - set(self._linears))
            problem = f"it lacks {some(gone, 3)}" if gone else f"{some(new, 3)} is not among them"
            raise ValueError(
                f"{self._where} holds {len(found)} packed weights, config.json lists "
                f"{len(self._linears)}: {problem}"
            )

    def _check_names(self, marker: Marker, names: set[str]) -> None:
        if marker.checksums is None:
            weights = names | {n.removesuffix(".bitmask") + ".weight" for n in names}  # legacy
            gone = [linear for linear in self._linears if not self._weights(linear) & weights]
            new = []
        else:
            gone = sorted(set(marker.checksums) - names)
            new = sorted(names - set(marker.checksums))
        if marker.tensors not in (None, len(names)):
            lacks = f"it lacks {some(gone, 3)}" if gone else "one was lost or added after pruning"
            raise ValueError(
                f"{self._where} holds {len(names)} tensors, config.json says {marker.tensors}: "
                + lacks
            )
        if gone:
            raise ValueError(
                f"{self._where}: config.json names weights that are missing: {some(gone, 3)}"
            )
        if new:
            raise ValueError(f"{self._where} holds {some(new, 3)}, which config.json lacks")

    @staticmethod
    def _weights(linear: str) -> set[str]:
        return {linear + kind for kind in _KINDS}

    def see(self, name: str, dense: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Compare one weight.

        Args:
            name: its name on disk when dense.
            dense: its values.
            tensors: what is stored of it, by name on disk.

        Raises:
            ValueError: another checksum or number of non-zeros than config.json says.
        """
        self._seen.add(name)
        if self._checksums is not None:
            check_checksum(name, stored_checksum(tensors, name), self._checksums.get(name))
        linear = linear_name(name)
        if linear == name or linear not in self._linears or dense.dim() != 2:
            return
        header = tensors.get(name + HEADER_SUFFIX)
        if header is not None:
            kept = int(header[3])
        elif name.endswith(".weight"):
            known = dense.dtype in STORAGE_DTYPES
            kept = int((nonzero(dense) if known else dense != 0).sum())
        else:  # words of 4-bit codes, which tell their zeros with their zero points only
            return
        if kept != self._linears[linear]:
            raise ValueError(
                f"{name} keeps {kept} values, config.json says {self._linears[linear]}"
            )

    def finish(self) -> None:
        """Check that all that config.json lists has been seen.

        Raises:
            ValueError: names what has not.
        """
        missing = [linear for linear in self._linears if not self._weights(linear) & self._seen]
        missing += sorted(set(self._checksums or ()) - self._seen)
        if missing:
            raise ValueError(
                f"{self._where}: config.json names weights that are missing: {some(missing, 3)}"
            )


def check_folder(folder: Path, marker: Marker) -> None:
    """Check a checkpoint folder as far as that goes without reading a weight.

    vLLM checks neither index nor names once a quantization method is set: a missing tensor would
    be served uninitialised.

    Raises:
        FileNotFoundError: a file that the index or the names of others ask for is missing.
        ValueError: a file is no whole safetensors file, or does not fit index or marker.
    """
    Integrity(folder, marker, read_header(shards(folder)))


def integrity_of(where: object, files: Iterable[Path], marker: Marker) -> Integrity:
    """Return what compares these files with the marker; see `Integrity`."""
    return Integrity(where, marker, read_header(files))
