"""Ask a served model about a picture through the OpenAI API; needs a server (`make serve`).

    python examples/serving/ask.py                                  # a picture drawn here
    python examples/serving/ask.py "what is this ?" --picture it.png

Without arguments it asks a question that the demo model was made for, and prints the right
answer next to the one that was given. The request itself is plain: what `ask` does, any client of
the OpenAI API can do.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tamp_modifier.demo.evaluation import evaluation_samples
from tamp_modifier.demo.pictures import draw

URL = "http://127.0.0.1:8000/v1"


def ask(url: str, question: str, picture: Path) -> str:
    """Return the model's answer, at temperature 0."""
    image = base64.b64encode(picture.read_bytes()).decode()
    body = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        "temperature": 0,
        "max_tokens": 16,
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["message"]["content"].strip()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Ask a served model about a picture.")
    parser.add_argument("question", nargs="?", help="default: one that the model was made for")
    parser.add_argument("--picture", type=Path, help="a PNG file; needs a question")
    parser.add_argument("--url", default=URL, help="of the server (default: %(default)s)")
    parser.add_argument("--number", type=int, default=0, help="which of the drawn pictures")
    arguments = parser.parse_args()
    if (arguments.question is None) != (arguments.picture is None):
        parser.error("give a question and --picture, or neither")
    question, picture, right = arguments.question, arguments.picture, None
    if picture is None:
        sample = evaluation_samples("what", arguments.number + 1)[-1]
        assert sample.scene is not None
        question, right = sample.question.question, sample.question.answer
        picture = Path("output/question.png")
        picture.parent.mkdir(exist_ok=True)
        draw(sample.scene).save(picture)
    print(f"picture: {picture}\nquestion: {question}")
    try:
        answer = ask(arguments.url, question, picture)
    except urllib.error.HTTPError as error:
        sys.exit(f"the server at {arguments.url} refused: {error.code} {error.reason}")
    except OSError:  # URLError, a lost connection, a timeout
        sys.exit(
            f"no server at {arguments.url}; start `make serve` and wait for "
            '"Application startup complete"'
        )
    print(f"answer: {answer}")
    if right is not None:
        print(f"right answer: {right}")


if __name__ == "__main__":
    main()
