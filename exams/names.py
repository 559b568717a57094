"""What may be an exam id, a student id, a person's name, a file name. Everything from outside passes here first.

Ids become folder names and parts of job keys, so they are plain ASCII; what people read are the names, in any script.
"""

from __future__ import annotations

import re
import unicodedata

from zq.exams.errors import ExamError
from zq.exams.segments import MEDIA_SUFFIXES

EXAM_ID_CHARS_MAX = 64
STUDENT_ID_CHARS_MAX = 20
NAME_CHARS_MAX = 100
IP_CHARS_MAX = 45
FILE_NAME_BYTES_MAX = 200
"""Leaves room below the 255 bytes of a file system for the marks of temporary and side files."""

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", re.ASCII)
_IP = re.compile(r"[\x21-\x7e]+")
_TURNS_TEXT = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORBIDDEN_IN_FILES = frozenset("/\\|")


def exam_id(text: object) -> str:
    """The text itself, if it may be an exam id. Raises ExamError("invalid") otherwise."""
    return _id(text, "exam id", EXAM_ID_CHARS_MAX)


def student_id(text: object) -> str:
    """The text itself, if it may be a student id. Raises ExamError("invalid") otherwise."""
    return _id(text, "student id", STUDENT_ID_CHARS_MAX)


def _id(text: object, what: str, chars_max: int) -> str:
    if not isinstance(text, str):
        raise ExamError("invalid", f"the {what} must be a string, not {type(text).__name__}")
    if not text or len(text) > chars_max:
        raise ExamError("invalid", f"the {what} has {len(text)} characters; give 1 to {chars_max}")
    if not _ID.fullmatch(text):
        raise ExamError(
            "invalid",
            f"{text!r} cannot be a {what}: use letters A-Z a-z, digits, '_', '-' and '.', the first one a letter, "
            "a digit or '_' (names in any script belong into the name)",
        )
    return text


def person_name(text: object, what: str = "student name") -> str:
    """A name for people, in any script, in Unicode's composed form (NFC) without blanks around it; may be empty.

    Raises ExamError("invalid") for control characters, lone surrogates, and more than NAME_CHARS_MAX characters.
    """
    if not isinstance(text, str):
        raise ExamError("invalid", f"the {what} must be a string, not {type(text).__name__}")
    if len(text) > 4 * NAME_CHARS_MAX:
        raise ExamError("invalid", f"the {what} has {len(text)} characters; give at most {NAME_CHARS_MAX}")
    name = unicodedata.normalize("NFC", text).strip()
    if len(name) > NAME_CHARS_MAX:
        raise ExamError("invalid", f"the {what} has {len(name)} characters; give at most {NAME_CHARS_MAX}")
    if any(_is_control(character) for character in name):
        raise ExamError("invalid", f"the {what} {name!r} has control characters or line breaks; leave them out")
    return name


def exam_name(text: object) -> str:
    """As `person_name`, and not empty."""
    name = person_name(text, "exam name")
    if not name:
        raise ExamError("invalid", "the exam name is empty; give the exam a name")
    return name


def client_ip(text: object) -> str:
    """An address as the server saw it: printable ASCII, at most IP_CHARS_MAX characters. Empty becomes "unknown"."""
    if not isinstance(text, str) or len(text) > IP_CHARS_MAX or not (text == "" or _IP.fullmatch(text)):
        raise ExamError("invalid", f"{text!r:.80} is no address; give at most {IP_CHARS_MAX} printable characters")
    return text or "unknown"


def file_name(text: object, what: str = "file name", *, dash_first: bool = False) -> str:
    """A name without a path that is safe in a folder, on a command line and in a log; any script is welcome.

    With `dash_first` it may begin with '-', for what is never on a command line. Raises ExamError("invalid") for
    separators, control characters, '|', a leading '.' or '-', and over-long names.
    """
    if not isinstance(text, str) or not text:
        raise ExamError("invalid", f"the {what} is missing")
    if text[0] == "." or (text[0] == "-" and not dash_first):
        raise ExamError("invalid", f"the {what} {text!r:.80} begins with {text[0]!r}; begin with a letter or a digit")
    for character in text:
        if character in _FORBIDDEN_IN_FILES or _is_control(character):
            raise ExamError("invalid", f"the {what} {text!r:.80} contains {character!r}; give a plain name, no path")
    size_bytes = len(text.encode("utf-8"))
    if size_bytes > FILE_NAME_BYTES_MAX:
        raise ExamError("invalid", f"the {what} has {size_bytes} bytes in UTF-8; give at most {FILE_NAME_BYTES_MAX}")
    return text


def segment_name(text: object) -> str:
    """A file name with one of MEDIA_SUFFIXES (in either case): what the merge reads is what is accepted here.

    Raises ExamError("invalid") otherwise.
    """
    name = file_name(text, "segment name", dash_first=True)
    stem, dot, extension = name.rpartition(".")
    if not stem or (dot + extension).lower() not in MEDIA_SUFFIXES:
        known = ", ".join(sorted(MEDIA_SUFFIXES))
        raise ExamError("invalid", f"the segment {name!r} has no extension that is merged; those are {known}")
    return name


def in_file_name(name: str, bytes_max: int = 120) -> str:
    """A person's name as part of a file name: what is not safe becomes '_', at most `bytes_max` bytes of UTF-8."""
    safe = "".join("_" if c in _FORBIDDEN_IN_FILES or _is_control(c) or c.isspace() else c for c in name)
    return safe.encode("utf-8")[:bytes_max].decode("utf-8", "ignore")


def _is_control(character: str) -> bool:
    """Control characters, lone surrogates, line and paragraph separators, and marks that turn the text's direction."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _TURNS_TEXT
