"""The examples of docs/identity.md can be copied."""

import json
import re
import time
from pathlib import Path

from harness.replicas import ROOT

from allim.access.authorize import signature
from allim.access.issuers import read_issuers

PAGE = (ROOT / "docs" / "identity.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_list_of_issuers_is_one(tmp_path: Path) -> None:
    (tmp_path / "shop.key").write_text("k" * 32)
    lists = [block for block in blocks("json") if block.startswith("[")]
    names = []
    for text in lists:
        (tmp_path / "issuers.json").write_text(text)
        names += [issuer.name for issuer in read_issuers(str(tmp_path / "issuers.json"))]

    assert names == [
        "https://shop.example.org", "https://example.eu.auth0.com/", "https://id.example.org/realms/shop",
    ]  # fmt: skip


def test_the_verification_that_is_shown_takes_what_allim_signs_and_nothing_else() -> None:
    [code] = [block for block in blocks("python") if "def verified" in block]
    names: dict[str, object] = {}
    exec(code, names)
    verified = names["verified"]
    assert callable(verified)
    secret, body = "s" * 32, b'{"subject":"42"}'
    now = int(time.time())

    assert verified(secret, signature(secret, body, now), body)
    assert not verified(secret, signature(secret, body, now), body + b" ")
    assert not verified(secret, signature("t" * 32, body, now), body)
    assert not verified(secret, signature(secret, body, now - 301), body)
    assert not verified(secret, f"t={now},v1=", body)


def test_the_signature_that_is_shown_is_that_of_the_question_that_is_shown() -> None:
    header = re.search(r"Allim-Signature: (t=(\d+),v1=\w+)\n\n(.*)\n", PAGE)
    assert header is not None

    assert signature("k" * 32, header[3].encode(), int(header[2])) == header[1]
    assert json.loads(header[3]) == {"subject": "42", "topics": ["room:a"]}
