"""Prints figures of the code's form, and fails if one is above its limit. Run by `make lint`.

Counted in src/allim: lines of functions and files, the share of comments, words that plain sentences do not need,
and import cycles, which includes imports for type checkers. Counted in README.md and docs: the same words.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "allim"
WORDS = re.compile(
    r"\b(who|whom|whose|whoever|what|whatever|somebody|someone|nobody|anybody|anyone|everybody|everyone)\b", re.I
)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
LIMITS = {
    "function p90": 16,
    "function longest": 60,
    "file longest": 420,
    "words per 1,000 lines of src": 6,
    "words per 1,000 words of docs": 4,
    "import cycles": 0,
}
TABLES = {"settings.py"}  # one line for each setting, with its range and default


def quantile(values: list[int], share: float) -> int:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def begin(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the line of a function's first decorator, or of its `def`."""
    return node.decorator_list[0].lineno if node.decorator_list else node.lineno


def functions(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of each function, without its docstring and the lines of functions inside it."""
    defined = [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    lines = {node: set(range(begin(node), (node.end_lineno or node.lineno) + 1)) for node in defined}
    for node in defined:
        inside = [lines[child] for child in ast.walk(node) if isinstance(child, FUNCTION) and child is not node]
        first = node.body[0]
        docstring = set(range(first.lineno, (first.end_lineno or 0) + 1)) if ast.get_docstring(node) else set()
        yield len(lines[node].difference(docstring, *inside)) - (node.lineno - begin(node))


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules of this package that a module imports at its top level, also under TYPE_CHECKING."""
    found: set[str] = set()
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, FUNCTION) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names
            }
    return (found & known) - {name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group: list[str] = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(group)

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return found


def words_of_docs() -> tuple[int, int]:
    """Return the number of the words to avoid, and of all words, outside code blocks."""
    avoided = total = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.S)
        avoided += len(WORDS.findall(text))
        total += len(text.split())
    return avoided, total


def main() -> int:
    texts = {path: path.read_text("utf-8") for path in sorted(SRC.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    names = {module_name(path) for path in texts}
    lengths = [length for tree in trees.values() for length in functions(tree)]
    files = {path: text.count("\n") for path, text in texts.items()}
    lines = sum(files.values())
    comments = sum(1 for text in texts.values() for line in text.splitlines() if line.lstrip().startswith("#"))
    avoided = sum(len(WORDS.findall(text)) for text in texts.values())
    doc_avoided, doc_total = words_of_docs()
    found = cycles({module_name(path): imports(module_name(path), tree, names) for path, tree in trees.items()})
    measured = {
        "function median": median(lengths),
        "function p90": quantile(lengths, 0.9),
        "function longest": max(lengths),
        "file median": median(files.values()),
        "file longest": max(count for path, count in files.items() if path.name not in TABLES),
        "comment lines per 100": round(100 * comments / lines, 1),
        "words per 1,000 lines of src": round(1000 * avoided / lines, 1),
        "words per 1,000 words of docs": round(1000 * doc_avoided / doc_total, 1),
        "import cycles": len(found),
    }
    high = [name for name, limit in LIMITS.items() if measured[name] > limit]
    for name, value in measured.items():
        limit = f"at most {LIMITS[name]}" if name in LIMITS else ""
        print(f"{name:<30} {value:>8}  {limit}{'  TOO HIGH' if name in high else ''}")
    for group in found:
        print("cycle:", " ↔ ".join(sorted(group)))
    return 1 if high else 0


if __name__ == "__main__":
    sys.exit(main())
