"""pagemap/_pagemap.pyi says of the extension what is true."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagemap import _pagemap

STUB = Path(_pagemap.__file__).with_name("_pagemap.pyi")
TREE = ast.parse(STUB.read_text())


def test_stubtest(tmp_path):
    """mypy's own comparison of a stub with the module that it describes; without the rest of the package."""
    pytest.importorskip("mypy.stubtest", reason="mypy is in the extra `dev`")
    package = tmp_path / "pagemap"
    package.mkdir()
    (package / "__init__.py").touch()
    for file in (STUB, Path(_pagemap.__file__)):
        (package / file.name).symlink_to(file)
    allowed = tmp_path / "allowed"
    if sys.version_info < (3, 12):  # PEP 688: the buffer protocol has no name in Python before
        allowed.write_text("pagemap._pagemap.RegionBuffer.__buffer__\n")
    else:
        allowed.touch()
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pagemap._pagemap", "--allowlist", str(allowed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
            "MYPYPATH": str(tmp_path),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr


def functions(body):
    return {node.name: node.args for node in body if isinstance(node, ast.FunctionDef)}


def public(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


def declared_class():
    (node,) = (node for node in TREE.body if isinstance(node, ast.ClassDef) and node.name == "RegionBuffer")
    return node


def test_names_on_both_sides():
    constants = {node.target.id for node in TREE.body if isinstance(node, ast.AnnAssign)}
    assert public(_pagemap) == constants | set(functions(TREE.body)) | {"RegionBuffer"}
    declared = {name for name in functions(declared_class().body) if not name.startswith("_")}
    assert public(_pagemap.RegionBuffer) == declared


def test_constants_are_integers():
    for node in TREE.body:
        if isinstance(node, ast.AnnAssign):
            assert ast.unparse(node.annotation) == "Final[int]"
            assert type(getattr(_pagemap, node.target.id)) is int


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        *((name, None) for name in functions(TREE.body)),
        *((name, "RegionBuffer") for name, args in functions(declared_class().body).items()
          if len(args.posonlyargs) > 1 and not name.startswith("_")),
    ],
)  # fmt: skip
def test_as_many_arguments_as_declared(name, owner):
    """One more by position than the stub allows, and one less than it asks for: TypeError, and no call."""
    if owner is None:
        function, arguments = getattr(_pagemap, name), functions(TREE.body)[name]
        positional = [*arguments.posonlyargs, *arguments.args]
    else:
        function = getattr(_pagemap.RegionBuffer(1), name)
        arguments = functions(declared_class().body)[name]
        positional = arguments.posonlyargs[1:]
    needed = len(positional) - len(arguments.defaults)
    for count in (needed - 1, len(positional) + 1):
        with pytest.raises(TypeError, match=r"argument"):
            function(*[0] * count)
    if not arguments.kwonlyargs:
        with pytest.raises(TypeError):
            function(*[0] * needed, nonsense=1)


def test_keywords_that_are_declared_are_taken():
    arguments = functions(TREE.body)["pagemap_scan"]
    for keyword in arguments.kwonlyargs:
        with pytest.raises(TypeError, match=f"{keyword.arg} must be an integer"):
            _pagemap.pagemap_scan(0, 0, 0, **{keyword.arg: "x"})
    assert [default.value for default in arguments.kw_defaults] == [0] * len(arguments.kwonlyargs)


def test_what_stands_by_position_only_is_no_keyword():
    arguments = functions(TREE.body)["pagemap_scan"]
    named = [argument.arg for argument in arguments.args]
    for argument in [*arguments.posonlyargs, *arguments.args]:
        taken = True
        try:
            _pagemap.pagemap_scan(-1, 0, 0, **{argument.arg: "x"})
        except TypeError as error:
            taken = "keyword" not in str(error)
        except ValueError:
            pass
        assert taken == (argument.arg in named), argument.arg


def test_every_function_says_what_it_does():
    for name in functions(TREE.body):
        assert name in getattr(_pagemap, name).__doc__
    assert "RegionBuffer(capacity)" in _pagemap.RegionBuffer.__doc__
