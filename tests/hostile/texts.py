"""Texts that have broken something somewhere: they end lines, hide, reverse, mean something to a pattern, or are no
characters at all."""

import json

TEXTS = {
    "CR": "a\rb",
    "LF": "a\nb",
    "CRLF": "a\r\nx-injected: 1\r\n\r\nb",
    "a frame": "a\n\nid: 9-9\nevent: stream.close\ndata: {}\n\n",
    "NUL": "a\0b",
    "VT": "a\x0bb",
    "FF": "a\x0cb",
    "ESC": "a\x1b[2J\x1b]0;b\x07",
    "DEL": "a\x7fb",
    "CSI": "a\x9b2Jb",
    "NEL": "a\x85b",
    "LS": "a\u2028b",
    "PS": "a\u2029b",
    "BOM": "\ufeffa",
    "bidi": "a\u202eb\u2066c\u200f",
    "zero width": "a\u200bb\u2060",
    "unicode digits": "１２３٣",
    "fullwidth": "ａｌｌｉｍ：４２",
    "beyond the BMP": "\U0001f600\U0010ffff",
    "noncharacter": "\ufffe\uffff",
    "combining": "e" + "\u0301" * 50,
    "case folding": "ſKİı",
    "asterisk": "user:*",
    "glob": "[a-z]?*",
    "hash tag": "{0}:{1}",
    "percent": "%0d%0a%00%s%n",
    "dots": "../../etc/passwd",
    "backslash": "..\\..\\a",
    "quotes": "\"'`",
    "SQL": "' OR 1=1 --",
    "template": "${jndi:ldap://a}{{7*7}}",
    "JSON": '","admin":true,"x":"',
    "spaces": "  a b  ",
    "empty": "",
    "comma": ",,,",
    "a minus": "-0",
    "huge number": "9" * 400,
    "exponent": "1e400",
    "1 kB": "x" * 1000,
    "7 kB": "é" * 3500,
}

HALF_PAIRS = {
    "a half": "\ud800",
    "the other half": "a\udfffb",
    "halves in disorder": "\udc00\ud800",
    "two firsts": "\ud800\ud800",
}

BYTES = {
    "Latin-1": b"a\xe9b",
    "overlong slash": b"a\xc0\xafb",
    "overlong NUL": b"a\xc0\x80b",
    "a half pair in UTF-8": b"a\xed\xa0\x80b",
    "a pair in CESU-8": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "cut short": b"a\xe2\x80",
    "a stray continuation": b"a\x80b",
    "all of them": bytes(range(256)),
}


def written(value: object) -> bytes:
    """JSON with every character beyond ASCII escaped, half pairs too."""
    return json.dumps(value).encode()
