"""Colours the code of an answer, in time that grows with its length only.

Code comes from models, tools and clients, and a regular expression that backtracks holds the
interpreter for the whole process. So each language has one pattern, and no alternative of it fails
after it has read more than a few characters: quantifiers are possessive, and a string or comment
that is not closed extends to the end of its line or of the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from django.utils.html import escape

__all__ = ["highlighted"]


@dataclass(frozen=True, slots=True)
class _Language:
    pattern: re.Pattern[str]
    keywords: frozenset[str] = frozenset()
    ignores_case: bool = False


def highlighted(code: str, language: str) -> str:
    """Return code as HTML, with spans of the classes ``agentic-hl-*`` if the language is known."""
    known = _LANGUAGES.get(language.lower())
    return "".join(_pieces(code, known)) if known else escape(code)


def _pieces(code: str, language: _Language) -> Iterator[str]:
    end = 0
    for match in language.pattern.finditer(code):
        name, text = match.lastgroup, match[0]
        if name == "word":
            word = text.lower() if language.ignores_case else text
            name = "k" if word in language.keywords else None
        if name:
            yield escape(code[end : match.start()])
            yield f'<span class="agentic-hl-{name}">{escape(text)}</span>'
            end = match.end()
    yield escape(code[end:])


# Parts of the patterns. The name of a group is the class of its span.

_WORD = r"(?P<word>[^\W\d][\w$]*+)"
_NUMBER = r"(?P<m>\d[\w.]*+)"
_DOUBLE = r'"(?:[^"\\\n]|\\.)*+"?'
_SINGLE = r"'(?:[^'\\\n]|\\.)*+'?"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n]{1,9}?)'"
_BACKTICK = r"`(?:[^`\\]|\\.)*+`?"
_TRIPLE = r'"""(?:[^"\\]|\\.|"(?!""))*+(?:""")?' + r"|'''(?:[^'\\]|\\.|'(?!''))*+(?:''')?"
_HASH = r"\#[^\n]*+"
_SLASHES = r"//[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?"
_DASHES = r"--[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?"


def _pattern(comment: str, *strings: str) -> re.Pattern[str]:
    parts = [f"(?P<c>{comment})", f"(?P<s>{'|'.join(strings)})", _WORD, _NUMBER]
    return re.compile("|".join(parts), re.DOTALL)


_SCRIPT = _pattern(_HASH, _TRIPLE, _DOUBLE, _SINGLE)
_BRACES = _pattern(_SLASHES, _DOUBLE, _SINGLE, _BACKTICK)
_COMPILED = _pattern(_SLASHES, _DOUBLE, _CHARACTER, _BACKTICK)
_QUERY = _pattern(_DASHES, _DOUBLE, _SINGLE)
_MIXED = _pattern(f"{_HASH}|{_SLASHES}", _DOUBLE, _SINGLE)
_MARKUP = re.compile(
    r"(?P<c><!--(?:[^-]|-(?!->))*+(?:-->)?)"
    rf"|(?P<s>{_DOUBLE})|(?P<nt></?[A-Za-z][\w:.-]*+|/?>)",
    re.DOTALL,
)
_DIFF = re.compile(r"^(?:(?P<gu>@@[^\n]*+)|(?P<gi>\+[^\n]*+)|(?P<gd>-[^\n]*+))", re.MULTILINE)

# Keywords

_PYTHON = """and as assert async await break case class continue def del elif else except False
    finally for from global if import in is lambda match None nonlocal not or pass raise return True
    try while with yield"""
_SHELL = """case do done elif else esac exit export fi for function if in local return set shift
    source then until while"""
_RUBY = """alias and begin break case class def do else elsif end ensure false for if in module next
    nil not or redo rescue retry return self super then true undef unless until when while yield"""
_DATA = "true false null True False None yes no on off"
_JAVASCRIPT = """abstract as async await break case catch class const continue debugger declare
    default delete do else enum export extends false finally for from function get if implements
    import in instanceof interface keyof let namespace new null of private protected public readonly
    return satisfies set static super switch this throw true try type typeof undefined var void
    while with yield"""
_C = """alignas auto bool break case catch char class const constexpr continue default define delete
    do double else endif enum explicit extern false float for friend goto if ifdef ifndef include
    inline int long namespace new noexcept nullptr operator private protected public return short
    signed sizeof static struct switch template this throw true try typedef typename union unsigned
    using virtual void volatile while"""
_MANAGED = """abstract as async await base bool boolean break byte case catch char class companion
    const continue data decimal default delegate do double else enum event extends extension false
    final finally float for foreach fun func get guard if implements implicit import in init inner
    int interface internal is lateinit let long match namespace new nil null object open out
    override package private protected protocol public readonly record ref return sealed self set
    short static string struct super suspend switch this throw throws trait true try typealias val
    var virtual void volatile when where while with yield"""
_GO = """break case chan const continue default defer else fallthrough false for func go goto if
    import interface iota map nil package range return select struct switch true type var"""
_RUST = """as async await break const continue crate dyn else enum extern false fn for if impl in
    let loop match mod move mut pub ref return self Self static struct super trait true type unsafe
    use where while"""
_PHP = """abstract and array as break case catch class const continue default do echo else elseif
    extends false final finally fn for foreach function global if implements instanceof interface
    match namespace new null or private protected public readonly return static switch throw trait
    true try use var while yield"""
_SQL = """add all alter and as asc begin between by case check column commit constraint create cross
    default delete desc distinct drop else end exists false foreign from full group having if in
    index inner insert into is join key left like limit not null offset on or order outer over
    partition primary references returning right rollback select set table then true union unique
    update using values view when where with"""
_CSS = "important media import supports keyframes from to"


def _languages(
    names: str, pattern: re.Pattern[str], keywords: str = "", *, ignores_case: bool = False
) -> dict[str, _Language]:
    language = _Language(pattern, frozenset(keywords.split()), ignores_case)
    return dict.fromkeys(names.split(), language)


_LANGUAGES: dict[str, _Language] = {
    **_languages("python py python3 pycon", _SCRIPT, _PYTHON),
    **_languages("bash sh shell zsh console", _SCRIPT, _SHELL),
    **_languages("ruby rb elixir", _SCRIPT, _RUBY),
    **_languages("yaml yml toml ini conf properties", _SCRIPT, _DATA),
    **_languages("json jsonc json5", _BRACES, _DATA),
    **_languages("javascript js jsx typescript ts tsx", _BRACES, _JAVASCRIPT),
    **_languages("c h cpp c++ hpp", _COMPILED, _C),
    **_languages("java kotlin kt csharp cs c# swift scala", _COMPILED, _MANAGED),
    **_languages("dart", _BRACES, _MANAGED),
    **_languages("go golang", _COMPILED, _GO),
    **_languages("rust rs", _COMPILED, _RUST),
    **_languages("css scss less", _BRACES, _CSS),
    **_languages("php", _MIXED, _PHP),
    **_languages("sql postgresql mysql sqlite plpgsql", _QUERY, _SQL, ignores_case=True),
    **_languages("html xml svg vue xhtml", _MARKUP),
    **_languages("diff patch", _DIFF),
}
