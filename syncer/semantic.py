"""What a file is worth: configuration first, media last. Pure.

Decided by name, then by the first bytes where somebody has them; the first that matches wins. The
class orders a job's queue (`--smart`) and says how a file that changed is best moved.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

HEAD_BYTES: Final = 512  # of a file that are worth reading for `classify`


class Strategy(enum.Enum):
    """How a changed file is moved. It is replaced whole at the destination in any case."""

    REPLACE = "replaced at once"  # read whole and written whole: small, and never half old
    APPEND = "append what grew"  # what was there is kept where it is the beginning of the new file
    CHUNKS = "changed chunks"  # what the destination's file has already is taken from there


class SemanticClass(enum.IntEnum):
    """The classes, most urgent first. The value is the rank: lower goes first."""

    CRITICAL = 0  # configuration
    HIGH = 1  # write-ahead and binary logs
    NORMAL = 2
    LOW = 3  # media, disk images, archives

    @property
    def rank(self) -> int:
        """Place in the queue; files of one rank go by size, smallest first."""
        return self.value

    @property
    def strategy(self) -> Strategy:
        """How its changed files are moved."""
        return _STRATEGIES[self]


_STRATEGIES: Final = {
    SemanticClass.CRITICAL: Strategy.REPLACE,
    SemanticClass.HIGH: Strategy.APPEND,
    SemanticClass.NORMAL: Strategy.CHUNKS,
    SemanticClass.LOW: Strategy.CHUNKS,
}


def _words(text: str) -> frozenset[bytes]:
    return frozenset(text.encode().split())


_CONFIGURATION_NAMES: Final = _words(
    "dockerfile containerfile makefile gnumakefile justfile jenkinsfile vagrantfile procfile"
    " pipfile rakefile gemfile cmakelists.txt go.mod go.sum requirements.txt .env .gitignore"
    " .gitattributes .dockerignore .editorconfig .npmrc .orbitignore crontab fstab"
    " authorized_keys"
)
_CONFIGURATION_ENDINGS: Final = _words(
    "toml json json5 jsonc yaml yml ini conf cfg config lock env properties service timer socket"
    " mount desktop plist tf tfvars hcl nix rules"
)
_LOG_FOLDERS: Final = _words("pg_wal pg_xlog wal binlog binlogs")
_LOG_ENDINGS: Final = _words("wal binlog")
_BULK_ENDINGS: Final = _words(
    # Media.
    "mp4 m4v mkv webm avi mov wmv mpg mpeg m2ts flv 3gp vob mxf mp3 m4a aac flac ogg oga opus"
    " wav aif aiff wma jpg jpeg png gif webp bmp tif tiff heic heif avif jxl psd raw cr2 cr3 nef"
    " arw dng"
    # Disk images.
    " iso img qcow qcow2 vmdk vdi vhd vhdx dmg squashfs sfs ova wim"
    # Archives.
    " zip tar gz tgz bz2 tbz2 xz txz zst tzst lz4 lzma 7z rar jar war whl deb rpm apk cab"
)

_MAGIC: Final[tuple[tuple[int, bytes, SemanticClass], ...]] = (
    # Logs of databases: SQLite's write-ahead log in either byte order, MySQL's binary log.
    (0, b"\x37\x7f\x06\x82", SemanticClass.HIGH),
    (0, b"\x37\x7f\x06\x83", SemanticClass.HIGH),
    (0, b"\xfebin", SemanticClass.HIGH),
    *(
        (offset, magic, SemanticClass.LOW)
        for offset, magic in (
            # Pictures, sound, video.
            (0, b"\xff\xd8\xff"),
            (0, b"\x89PNG\r\n\x1a\n"),
            (0, b"GIF8"),
            (0, b"II*\0"),
            (0, b"MM\0*"),
            (4, b"ftyp"),  # MP4, MOV, HEIC, AVIF
            (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
            (8, b"AVI LIST"),
            (8, b"WAVEfmt "),
            (8, b"WEBPVP8"),
            (0, b"OggS"),
            (0, b"fLaC"),
            (0, b"ID3"),
            (0, b"\xff\xfb"),  # MPEG audio, layer 3
            (0, b"\0\0\x01\xba"),  # MPEG programme stream
            (0, b"8BPS"),
            # Disk images.
            (0, b"QFI\xfb"),
            (0, b"KDMV"),
            (64, b"\x7f\x10\xda\xbe"),  # VirtualBox
            (0, b"conectix"),
            (0, b"vhdxfile"),
            (0, b"LUKS\xba\xbe"),
            (0, b"hsqs"),
            (510, b"\x55\xaa"),  # a boot sector
            # Archives and what is compressed.
            (0, b"PK\x03\x04"),
            (0, b"\x1f\x8b\x08"),
            (0, b"BZh"),
            (0, b"\xfd7zXZ\0"),
            (0, b"\x28\xb5\x2f\xfd"),
            (0, b"\x04\x22\x4d\x18"),
            (0, b"7z\xbc\xaf\x27\x1c"),
            (0, b"Rar!\x1a\x07"),
            (257, b"ustar"),
            (0, b"!<arch>\ndebian"),
            (0, b"\xed\xab\xee\xdb"),
            (0, b"MSCF"),
        )
    ),
)


def _by_name(path: bytes) -> SemanticClass | None:
    folders, _, name = path.lower().rpartition(b"/")
    stem, dot, ending = name.rpartition(b".")
    if name in _CONFIGURATION_NAMES or name.startswith((b".env.", b"dockerfile.")):
        return SemanticClass.CRITICAL
    if dot and ending in _CONFIGURATION_ENDINGS:
        return SemanticClass.CRITICAL
    if not _LOG_FOLDERS.isdisjoint(folders.split(b"/")):
        return SemanticClass.HIGH
    if (dot and ending in _LOG_ENDINGS) or name.endswith((b"-wal", b"-journal")):
        return SemanticClass.HIGH
    # A name that is all ending (`.zip`) says nothing.
    if dot and stem and ending in _BULK_ENDINGS:
        return SemanticClass.LOW
    return None


def _by_magic(head: bytes) -> SemanticClass | None:
    for offset, magic, found in _MAGIC:
        if head.startswith(magic, offset):
            return found
    return None


def classify(path: bytes, head: bytes | None = None) -> SemanticClass:
    """Return the class of a file. `head`: its first bytes, HEAD_BYTES are enough."""
    found = _by_name(path)
    if found is None and head:
        found = _by_magic(head)
    return SemanticClass.NORMAL if found is None else found


class Classes:
    """`classify`, with the config's own opinions first."""

    def __init__(self, overrides: Sequence[tuple[str, str]] = ()) -> None:
        """`overrides`: a glob as in filters, and the name of a class. The first that matches wins.

        Raises FilterError.
        """
        from syncer.filter_patterns import FilterError, PatternSet, glob_regex

        self._classes: list[SemanticClass] = []
        regexes = []
        for glob, name in overrides:
            if name.upper() not in SemanticClass.__members__:
                known = ", ".join(SemanticClass.__members__).lower()
                raise FilterError(f"{glob!r}: {name!r} is no class; there are {known}")
            regex = glob_regex(glob, directory=False)
            if regex is None:
                raise FilterError(f"{glob!r}: classes are those of files; take the last / away")
            regexes.append(regex)
            self._classes.append(SemanticClass[name.upper()])
        self._set = PatternSet(regexes) if regexes else None

    def named(self, path: bytes) -> SemanticClass | None:
        """The class that the config or a file's name gives it; None: they say nothing."""
        if self._set is not None:
            from syncer.filter_patterns import matchable

            found = self._set.match(matchable(path))
            if found:
                return self._classes[min(found)]
        return _by_name(path)

    def classify(self, path: bytes, head: bytes | None = None) -> SemanticClass:
        """Return the class of a file. `head`: its first bytes, HEAD_BYTES are enough."""
        found = self.named(path)
        if found is None and head:
            found = _by_magic(head)
        return SemanticClass.NORMAL if found is None else found
