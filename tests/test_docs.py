"""Documents tell users to import public names only, name what exists, and make a site without a warning."""

import ast
import importlib
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

import klball
import klball.report
from klball import upweighting
from klball.cli import COMMANDS
from klball.commands.flag_names import ALWAYS, known_flags

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"])
PAGES += sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), ROOT / "scripts" / "readme_figure.py"])
PUBLIC = {"klball": klball, "klball.report": klball.report, "klball.plot": klball.plot}
OLD_ROOMS = re.compile(r"klball[./](robust|evaluation|experiments|ambiguity)\b|\b(robust|evaluation)/")


def named(source):
    """What a piece of Python takes from klball: (module, name), by import or as an attribute."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "klball":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "klball" and alias.name != "klball":
                    yield alias.name, "*"
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "klball"
        ):
            yield "klball", node.attr


def private(source):
    """The names among them that are not public."""
    return [
        f"{module}.{name}"
        for module, name in named(source)
        if name != "__version__" and (module not in PUBLIC or name not in (*PUBLIC[module].__all__, "*"))
    ]


def python_of(path):
    """All Python that a page, script or notebook shows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    if path.suffix == ".ipynb":
        return ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    blocks = re.findall(r"^```(?:python|py)\b.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if not block.startswith("--8<--")]


@pytest.mark.parametrize(
    "path", [*PAGES, *SCRIPTS, ROOT / "examples" / "solve.ipynb"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_only_public_names_are_imported(path):
    assert [name for source in python_of(path) for name in private(source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "from klball.comparison.rounds import round_scores",
        "from klball import accountant",
        "import klball.training.ledger",
        "import klball\nklball.solve_duel([1])",
        "from klball.report import heat_map",
    ],
)
def test_a_private_name_is_seen(source):
    assert private(source)


@pytest.mark.parametrize("module", PUBLIC.values(), ids=PUBLIC)
def test_every_public_name_is_there(module):
    listed = set(module.__all__)
    assert listed and all(getattr(module, name).__name__.endswith(name) for name in listed)
    assert listed <= set(dir(module))
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_the_package_says_its_version_and_imports_nothing_heavy():
    code = "import klball, sys; print(klball.__version__, 'torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [klball.__version__, "False", "False"]
    assert (Path(klball.__file__).parent / "py.typed").exists()


def test_the_reference_has_every_public_name_once():
    documented = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    public = {f"{module}.{name}" for module, home in PUBLIC.items() for name in home.__all__}
    assert sorted(documented) == sorted(public - {*PUBLIC})


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_what_exists(path):
    text = path.read_text(encoding="utf-8")
    assert not OLD_ROOMS.search(text)
    for module in set(re.findall(r"`(klball(?:\.[a-z_]+)+)`", text)):
        home, _, name = module.rpartition(".")
        assert hasattr(importlib.import_module(home), name) or importlib.import_module(module)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_tree_is_the_tree():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```\nsrc/klball/\n(.*?)```", text, re.DOTALL)
    source, folders = ROOT / "src" / "klball", []
    shown = set()
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        if len(indent) > 6:
            continue  # a description goes on
        depth = len(indent) // 2 - 1
        folders[depth:] = [name] if name.endswith("/") else []
        place = "".join(folders[:depth]) + name
        assert (source / place).exists(), place
        shown.add(place)
    assert all(any(source.rglob(name)) for name in re.findall(r"\b[a-z_]+\.py\b", tree))
    rooms = {f"{path.parent.relative_to(source)}/" for path in source.rglob("__init__.py")} - {"./"}
    assert rooms | {path.name for path in source.glob("[a-z]*.py")} <= shown


def test_what_the_readme_says_of_the_radius():
    """With a share m of the weight on a share f of the data, KL(m‖f) reaches ε at the number printed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (?:the hardest )?(\d+) %.*?\| ([\d.]+) times \| ([\d.]+) % \| ([\d.]+) times \|$", text, re.M
    )
    assert [row[0] for row in rows] == ["1", "5", "20"]

    def kl(times, share):
        m = times * share
        return m * math.log(m / share) + (1 - m) * math.log((1 - m) / (1 - share))

    def half_a_digit(printed):
        return 0.5 * 10.0 ** -len(printed.partition(".")[2])

    for percent, times, makes_up, times_at_half in rows:
        share = int(percent) / 100
        printed = ((0.05, times, 1), (0.05, makes_up, int(percent)), (0.5, times_at_half, 1))
        for radius, value, one in printed:
            low, high = ((float(value) + sign * half_a_digit(value)) / one for sign in (-1, 1))
            assert kl(low, share) <= radius <= kl(high, share), (percent, value)


def test_what_the_guide_says_of_radii():
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| ([\d., ]+) times \|", text, re.M)
    assert len(rows) == 5
    for epsilon, times in rows:
        assert times == ", ".join(f"{upweighting(float(epsilon), share):.2g}" for share in (0.01, 0.05, 0.2))


def commands_of(path):
    """The words of every klball command in a page, the lines of a block or of a pair of backticks."""
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`(klball [^`]*)`", text)
    lines = re.findall(r"^(?: {4}|> ?)?(klball (?:.|\\\n)*?)$", text, re.M)
    lines += re.findall(r"-m (klball [^`\n]*)", text)
    for line in [*inline, *lines]:
        words = line.replace("…", "").partition("  #")[0].split()
        if len(words) > 1 and words[1] in COMMANDS:
            yield words[1], [word.strip(".,;:)`'\"") for word in words[2:]]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_pages_have_flags_that_exist(path):
    for command, words in commands_of(path):
        flags = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--config", *ALWAYS}
        assert flags <= known_flags(COMMANDS[command][0]), (command, words)


def test_commands_are_found_in_pages():
    found = [command for path in PAGES for command, _ in commands_of(path)]
    assert {*found} == {*COMMANDS} and len(found) > 50


SHAPES = {  # published: width, layers, width of the MLP, heads, of keys, vocabulary, tied embeddings
    "Qwen3-0.6B": (1024, 28, 3072, 16, 8, 151_936, True),
    "Qwen3-1.7B": (2048, 28, 6144, 16, 8, 151_936, True),
    "Qwen3-4B": (2560, 36, 9728, 32, 8, 151_936, True),
    "Qwen3-8B": (4096, 36, 12288, 32, 8, 151_936, False),
    "Llama-3.1-8B": (4096, 32, 14336, 32, 8, 128_256, False),
    "Llama-3.1-70B": (8192, 80, 28672, 64, 8, 128_256, False),
}
NAMES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "tie_word_embeddings"),
)


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_guide_says_of_gpu_memory(name):
    """Parameters as Transformers builds them."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+B) \|((?: [\d.]+ \|){6})$", text, re.M))
    assert {*rows} == {*SHAPES}
    kind = partial(Qwen3Config, head_dim=128) if name.startswith("Qwen3") else LlamaConfig
    config = kind(**dict(zip(NAMES, SHAPES[name], strict=True)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width, layers, mlp = SHAPES[name][:3]
    tokens, every = 8192, sum(p.numel() for p in model.parameters())
    linear = [part for part in model.base_model.modules() if type(part) is torch.nn.Linear]
    blocks = sum(part.weight.numel() for part in linear)
    adapters = 16 * 16 * sum(sum(part.weight.shape) for part in linear)
    activations = 2 * tokens * (width * layers + 8 * width + 4 * mlp)
    quantised = 0.5625 * blocks + 2 * (every - blocks) + adapters
    whole = [
        states + activations + 1.5e9 for states in (quantised, 2 * every + adapters, 8 * every, 18 * every)
    ]
    printed = [float(x) for x in rows[name].split("|")[:-1]]
    assert printed == pytest.approx([x / 1e9 for x in (every, activations, *whole)], abs=0.051)


def test_the_site_is_made_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert 'id="klball.solve_dual"' in reference and "effective sample size" in reference


def test_the_focal_loss_of_the_guide():
    blocks = python_of(ROOT / "docs" / "choosing.md")
    (block,) = (b for b in blocks if "def focal" in b)
    names = {}
    exec(block.partition("trainer =")[0], names)
    p = torch.tensor([0.1, 0.5, 0.999])
    assert names["focal"](p.log()) == pytest.approx(-((1 - p) ** 2) * p.log(), abs=1e-6)
