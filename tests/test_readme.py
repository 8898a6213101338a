"""README and pages: the example runs and prints what stands there, and all that they name exists."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

REPO = Path(__file__).resolve().parent.parent
README = (REPO / 'README.md').read_text()
PAGES = [REPO / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')] + sorted(REPO.glob('docs/*.md'))
CONFIG, EXAMPLE = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
(OUTPUT,) = re.findall(r'```text\n(.*?)```', README, re.DOTALL)
EACH_PAGE = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(REPO).as_posix())


def test_it_is_short():
    assert len(README.splitlines()) <= 160


def test_the_example_prints_what_the_readme_says(tmp_path):
    pytest.importorskip('mmdet')
    env = dict(os.environ, PYTHONPATH=str(REPO))
    done = subprocess.run([sys.executable, '-c', EXAMPLE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == OUTPUT, done.stderr


def test_the_config_is_one_that_ships(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'config.py').write_text(CONFIG)
    shipped = Config.fromfile(REPO / 'configs' / 'retinanet_r50_repl_coco.py')
    assert Config.fromfile(tmp_path / 'config.py').to_dict() == shipped.to_dict()


def prose(page):
    """A page's text without its blocks of code, where a # starts no heading and a bracket no link."""
    return re.sub(r'^```.*?^```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page):
    """What GitHub makes of a page's headings."""
    found = set()
    for heading in re.findall(r'^#+ (.*)', prose(page), re.MULTILINE):
        slug = re.sub(r'[^\w -]', '', re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading).lower()).replace(' ', '-')
        number = next(n for n in range(len(found) + 1) if (f'{slug}-{n}' if n else slug) not in found)
        found.add(f'{slug}-{number}' if number else slug)
    return found


@EACH_PAGE
def test_links_point_somewhere(page):
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if target.startswith(('https://', 'http://')):
            continue
        name, _, anchor = target.partition('#')
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or not file.is_relative_to(REPO) or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@EACH_PAGE
def test_commands_and_files_exist(page):
    text = page.read_text()
    targets = set(re.findall(r'^([\w-]+):', (REPO / 'Makefile').read_text(), re.MULTILINE))
    unknown = set(re.findall(r'(?:^|`)make ([a-z][\w-]*)', text, re.MULTILINE)) - targets
    missing = [
        path
        for path in re.findall(r'(?<![\w./:-])((?:configs|docs|repl_mm|requirements|tests|tools)/[\w./-]*\w)', text)
        if not (REPO / path).exists() and path != 'repl_mm/families/toy.py'  # the example of families.md
    ]
    shipped = [name for name in re.findall(r'repl_mm::([\w./-]+\.py)', text) if not (REPO / 'configs' / name).exists()]
    assert not (unknown or missing or shipped), (unknown, missing, shipped)


def test_every_page_is_in_the_index():
    index = (REPO / 'docs' / 'README.md').read_text()
    assert [page.name for page in (REPO / 'docs').glob('*.md') if f']({page.name})' not in index] == ['README.md']
