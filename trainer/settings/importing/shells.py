"""Scripts of POSIX shells, of Windows' prompt and of PowerShell: their commands as words, with quotes and variables.

Nothing is run. What the script sets is put in where its name stands; a name that nothing sets for sure, such as one
that is set under a condition, is told with the word it stands in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command.

    `unknown` are the names in it whose values are not known, as they are written. `whole`: it is nothing but such a
    name, outside of quotes, so that it may be no word at all or several.
    """

    text: str
    unknown: tuple[str, ...] = ()
    whole: bool = False


class Unclosed(Exception):
    """A quote that opens in this line is never closed."""

    def __init__(self, line: int, quote: str) -> None:
        super().__init__(f"line {line}: the quote {quote} that opens there is never closed; close it.")
        self.line, self.quote = line, quote

    def below(self, lines: int) -> Unclosed:
        """Return it for a text with so many lines above."""
        return Unclosed(self.line + lines, self.quote)


@dataclass(frozen=True, slots=True)
class Shell:
    """How a shell writes.

    `continuation` ends a line that goes on, `escape` takes a sign its meaning, inside `quotes` too where
    `escapes_in_quotes` says so; inside `literal` quotes nothing is replaced. `assignment` finds what sets a variable,
    `variable` a name in use, `comment` what begins one, `separators` the signs that end a command. `doubles`: a quote
    written twice inside its like is the sign itself. `splits`: a value with blanks outside of quotes becomes several
    words. `opens` and `closes` are the words around what is done on a condition. `quotes_end` with their line.
    """

    name: str
    continuation: str
    escape: str
    quotes: str
    literal: str
    assignment: re.Pattern[str]
    variable: re.Pattern[str]
    comment: re.Pattern[str]
    separators: str
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    doubles: bool = False
    splits: bool = True
    escapes_in_quotes: bool = True
    quotes_end: bool = False


POSIX = Shell(
    name="a POSIX shell",
    continuation="\\",
    escape="\\",
    quotes="\"'",
    literal="'",
    assignment=re.compile(r"(?:(?:export|local|readonly|declare(?: -\w+)*)\s+)?([A-Za-z_]\w*)(\+?)="),
    variable=re.compile(
        r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(\[[@*]\])|:?-([^{}$`]*))?\}|\{[^{}\n]*\}|[@*#?$!0-9])"
        r"|\$\((?:[^()\n]|\([^()\n]*\))*\)|`[^`\n]*`"
    ),
    comment=re.compile("#"),
    separators=";&|()",
    opens=("if", "for", "while", "until", "case"),
    closes=("fi", "done", "esac"),
)
BATCH = Shell(
    name="Windows' prompt",
    continuation="^",
    escape="^",
    quotes='"',
    literal="",
    assignment=re.compile(r"@?set\s+(?:/[ap]\s+)?\"?([A-Za-z_]\w*)()=", re.IGNORECASE),
    variable=re.compile(r"%([A-Za-z_]\w*)%|%[A-Za-z_]\w*:[^%\n]*%|%~\w*\d|%[\d*]|!([A-Za-z_]\w*)!()()"),
    comment=re.compile(r"::|@?rem\b", re.IGNORECASE),
    separators="&|",
    opens=("(",),
    closes=(")",),
    escapes_in_quotes=False,
    quotes_end=True,
)
POWERSHELL = Shell(
    name="PowerShell",
    continuation="`",
    escape="`",
    quotes="\"'",
    literal="'",
    assignment=re.compile(r"\$(?:Env:|script:|global:)?([A-Za-z_]\w*)\s*(\+?)=\s*", re.IGNORECASE),
    variable=re.compile(
        r"\$(?:Env:)?(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}()())|\$\((?:[^()\n]|\([^()\n]*\))*\)", re.IGNORECASE
    ),
    comment=re.compile("#"),
    separators=";|",
    opens=("{",),
    closes=("}",),
    doubles=True,
    splits=False,
)
BY_ENDING = {".sh": POSIX, ".bash": POSIX, ".bat": BATCH, ".cmd": BATCH, ".ps1": POWERSHELL}

_ONLY_A_SHELL = re.compile(r"[\[({@$]|\d+\s*[-+*/]")
"""How a value of PowerShell's begins that has to be computed."""


_GOES_ON = re.compile(r"[ \t]*(?:[ \t]#[^\n]*)?(?:\n|\Z)")
"""What follows the sign that a line goes on: blanks and a comment too, since people write them there."""

_TO_A_FILE = re.compile(r"[<>]+(?:&\d+|[ \t]*(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s;&|<>]*))")
"""Where output goes to, or input comes from."""


def shell_of(text: str, ending: str = "") -> Shell:
    """Return the shell that a script is for: by its file's ending, else by how its lines go on and what it names."""
    if ending.lower() in BY_ENDING:
        return BY_ENDING[ending.lower()]
    ends = [line.rstrip()[-1:] for line in text.splitlines()]
    found = max((POSIX, BATCH, POWERSHELL), key=lambda shell: ends.count(shell.continuation))
    if ends.count(found.continuation):
        return found
    if re.search(r"\$env:|^\s*\$\w+\s*=", text, re.IGNORECASE | re.MULTILINE):
        return POWERSHELL
    return BATCH if re.search(r"%\w+%|(?<![\w'])[A-Za-z]:\\", text) else POSIX


def commands(text: str, shell: Shell) -> Iterator[tuple[Word, ...]]:
    """Yield the commands of a script, each as its words.

    Raises:
        Unclosed: a quote is never closed.
    """
    scanner = _Scanner(text, shell)
    while scanner.place < len(scanner.text):
        words = scanner.command()
        if words:
            yield words


@dataclass(slots=True)
class _Scanner:
    """Goes through a script once. `values` are the variables that are set for sure, `depth` of conditions around."""

    text: str
    shell: Shell
    place: int = 0
    depth: int = 0
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    delayed: bool = False

    def __post_init__(self) -> None:
        self.text = self.text.replace("\r\n", "\n")
        self.delayed = "enabledelayedexpansion" in self.text.lower()

    # --- commands ---------------------------------------------------------------------------------------------------

    def command(self) -> tuple[Word, ...]:
        """Return the words up to what ends this command; what sets a variable is no command."""
        words: list[Word] = []
        while not self._ended():
            if (not words or self.shell is not BATCH) and self._skip_comment():
                continue
            if self._assigns(words):
                continue
            found = self._word()
            if len(found) == 1 and self._is_of_a_condition(found[0].text, first=not words):
                continue
            words += found
        return tuple(words)

    def _ended(self) -> bool:
        """Skip blanks and what goes on; say whether the command ends here, and go past what ends it."""
        while self.place < len(self.text):
            sign = self.text[self.place]
            if sign == self.shell.continuation and (goes_on := _GOES_ON.match(self.text, self.place + 1)):
                self.place = goes_on.end()
            elif sign.isspace() and sign != "\n":
                self.place += 1
            else:
                break
        else:
            return True
        if sign == "\n" or sign in self.shell.separators:
            self.place += 1
            return True
        return False

    def _skip_comment(self) -> bool:
        if self.shell is POWERSHELL and self.text.startswith("<#", self.place):
            end = self.text.find("#>", self.place)
            self.place = len(self.text) if end < 0 else end + 2
            return True
        if self.shell.comment.match(self.text, self.place):
            self._skip_line()
            return True
        return False

    def _skip_line(self) -> None:
        end = self.text.find("\n", self.place)
        self.place = len(self.text) if end < 0 else end

    def _is_of_a_condition(self, text: str, *, first: bool) -> bool:
        """Keep count of the conditions around; say whether the word is one of theirs, after which a command begins."""
        if text in self.shell.opens and (first or self.shell is not POSIX):
            self.depth += 1
            return self.shell is not POSIX
        if text in self.shell.closes:
            self.depth = max(0, self.depth - 1)
            return True
        return first and text in ("then", "else", "do")

    # --- variables --------------------------------------------------------------------------------------------------

    def _assigns(self, before: Sequence[Word]) -> bool:
        """Take what sets a variable; say whether there was such a thing. `before` are the command's words so far."""
        condition = self.shell is BATCH and bool(before) and before[0].text.lower() in ("if", "for")
        found = None if before and not condition else self.shell.assignment.match(self.text, self.place)
        if not found:
            return False
        name, more = found[1].lower(), found[2]
        self.place = found.end()
        value = self._value(found[0])
        if value is None or self.depth or condition or (more and name not in self.values):
            self.values.pop(name, None)  # it depends on what only the shell knows
        else:
            self.values[name] = (*self.values[name], *value) if more else value
        return True

    def _value(self, setting: str) -> tuple[str, ...] | None:
        """Return what stands behind the sign that sets a variable, None where it is not known."""
        if self.shell is BATCH:
            return self._rest_of_line(quoted='"' in setting, asked="/" in setting)
        if self.shell is POSIX and self.text.startswith("(", self.place):
            return self._list()
        if self.shell is POWERSHELL and _ONLY_A_SHELL.match(self.text, self.place) and not self._is_plain_name():
            self._skip_line()
            return None
        words: list[Word] = []
        while not self._at_an_end() and not self._skip_comment():
            words += self._word(quoted=True)
            if self.shell is POSIX:
                break
            if self._ended():
                self.place -= self.place > 0 and self.text[self.place - 1] == "\n"
                break
        known = len(words) <= 1 and not any(word.unknown for word in words)
        return (words[0].text if words else "",) if known else None

    def _is_plain_name(self) -> bool:
        """Say whether another variable alone is the value."""
        return bool(re.compile(r"\$\{?\w+\}?\s*(?:#.*)?$", re.MULTILINE).match(self.text, self.place))

    def _at_an_end(self) -> bool:
        return self.place >= len(self.text) or self.text[self.place].isspace()

    def _rest_of_line(self, *, quoted: bool, asked: bool) -> tuple[str, ...] | None:
        begin = self.place
        self._skip_line()
        text, unknown = self._replaced(self.text[begin : self.place])
        if asked or unknown:
            return None
        text = text.partition("&")[0].rstrip() if not quoted else text.rpartition('"')[0] or text
        return (text,)

    def _replaced(self, text: str) -> tuple[str, list[str]]:
        """Return a text of Windows' prompt with the values of variables in it, and the names that have none."""
        unknown: list[str] = []

        def value(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            known = self.values.get((match[1] or match[2] or "").lower())
            if known is None:
                unknown.append(match[0])
            return match[0] if known is None else known[0]

        return re.sub(f"%%|{self.shell.variable.pattern}", value, text), unknown

    def _list(self) -> tuple[str, ...] | None:
        """Return the words of a list in brackets."""
        words: list[Word] = []
        self.place += 1
        while self.place < len(self.text) and self.text[self.place] != ")":
            if self.text[self.place].isspace() or self.text[self.place] == self.shell.continuation:
                self.place += 1
            elif self.shell.comment.match(self.text, self.place):
                self._skip_line()
            else:
                before = self.place
                words += self._word(ends=")")
                self.place += self.place == before
        self.place += 1
        return None if any(word.unknown for word in words) else tuple(word.text for word in words)

    def _name_in_use(self, quote: str) -> tuple[re.Match[str], Sequence[str] | None] | None:
        """Return the name in use that stands here, and its value; several words where it is a list."""
        found = None if quote and quote == self.shell.literal else self.shell.variable.match(self.text, self.place)
        if not found or (found[0].startswith("!") and not self.delayed):
            return None
        value: Sequence[str] | None = self.values.get((found[1] or found[2] or "").lower())
        if self.shell is POSIX and value is None and found[4] is not None:
            value = (found[4],)
        if self.shell is POSIX and value is not None and len(value) != 1 and not found[3]:
            value = value[:1] or ("",)  # a list without [@] is its first word
        return found, value

    # --- words ------------------------------------------------------------------------------------------------------

    def _word(self, *, ends: str = "", quoted: bool = False) -> list[Word]:
        """Return the word that begins here; none for what sends output elsewhere, several for a list's name."""
        begin, texts, unknown, quote, opened = self.place, [""], [], "", 0
        bare = True
        while self.place < len(self.text):
            named = self._name_in_use(quote)
            if named:
                match, value = named
                self.place = match.end()
                if value is None:
                    unknown.append(match[0])
                    value = (match[0],)
                elif not quote and self.shell.splits and not quoted and not (self.shell is POSIX and match[3]):
                    value = [part for each in value for part in each.split()]
                texts = [*texts[:-1], texts[-1] + value[0], *value[1:]] if value else texts
                bare = bare and (not quote or not value)
                continue
            sign = self.text[self.place]
            if quote:
                if sign == "\n" and self.shell.quotes_end:
                    break
                self.place += 1
                quote, sign = self._in_quotes(quote, sign)
                texts[-1] += sign
            elif sign in self.shell.quotes:
                quote, opened = sign, self.place
                bare = bare and self.shell.variable.match(self.text, self.place + 1) is not None
                self.place += 1
            elif sign.isspace() or sign in self.shell.separators or (ends and sign == ends) or self._goes_on(sign):
                break
            elif sign in "<>":
                return self._elsewhere(texts)
            else:
                texts[-1] += self._plain(sign)
        if quote:
            raise Unclosed(self.text.count("\n", 0, opened) + 1, quote)
        whole = bare and len(unknown) == 1 and self.text[begin : self.place] == unknown[0]
        if self.shell is POWERSHELL and bare and re.fullmatch(r"@\w+", texts[0]):
            return [Word(texts[0], (texts[0],), whole=True)]
        if texts == [""] and bare:
            return []  # a list without words, or an empty name outside of quotes
        return [Word(text, tuple(name for name in unknown if name in text), whole) for text in texts]

    def _goes_on(self, sign: str) -> bool:
        return sign == self.shell.continuation and bool(_GOES_ON.match(self.text, self.place + 1))

    def _in_quotes(self, quote: str, sign: str) -> tuple[str, str]:
        """Return the quote that holds after a sign inside one, and what the sign stands for; `place` is behind it."""
        following = self.text[self.place : self.place + 1]
        if sign == quote and self.shell.doubles and following == quote:
            self.place += 1
            return quote, quote
        if sign == quote:
            return "", ""
        escapes = self.shell.escapes_in_quotes and quote != self.shell.literal
        if sign == self.shell.escape and escapes and following and following in f"{quote}{self.shell.escape}$`\n":
            self.place += 1
            return quote, "" if following == "\n" else following
        if sign == "%" and self.shell is BATCH and following == "%":
            self.place += 1
        return quote, sign

    def _plain(self, sign: str) -> str:
        """Return what a sign outside of quotes stands for, and go past it."""
        following = self.text[self.place + 1 : self.place + 2]
        self.place += 1
        if sign == self.shell.escape and following:
            self.place += 1
            return following
        if sign == "%" and self.shell is BATCH and following == "%":
            self.place += 1
        return sign

    def _elsewhere(self, texts: list[str]) -> list[Word]:
        """Go past a file that output goes to, or past the text that a command is given."""
        here = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?").match(self.text, self.place)
        if here and self.shell is POSIX:
            end = re.compile(rf"^\s*{here[1]}\s*$", re.MULTILINE).search(self.text, here.end())
            self.place = end.end() if end else len(self.text)
            return []
        end = _TO_A_FILE.match(self.text, self.place)
        self.place = end.end() if end else self.place + 1
        return [] if texts[0].isdigit() or texts == [""] else [Word(texts[0])]
