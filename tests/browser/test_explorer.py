"""The explorer in a real browser: clicks on the grid, the answer moves, nothing leaves the machine.

Screenshots go to the folder named in MNEMOSCOPE_SCREENSHOTS, where a person can look at them.
"""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from mnemoscope.results.head_set import load_head_set
from mnemoscope.results.neuron_set import load_neuron_set
from planted_ground import (
    CLAIM,
    CONTEXT_HEAD,
    HOSTILE,
    MEMORY_HEAD,
    RITE,
    STORED,
    TOWN,
)
from visit import WAIT

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


def test_click_switch_off_and_save(visits: Any, explorer: Any) -> None:
    visit = visits()
    visit.see(f"Head {MEMORY_HEAD}")
    visit.settle()
    assert [code.split()[0] for code in visit.code(2)[:2]] == [STORED, CLAIM]

    visit.cell(CONTEXT_HEAD).click(timeout=WAIT)
    visit.see(f"Head {CONTEXT_HEAD}")
    visit.settle()
    assert "layer=1&head=5" in visit.page.url
    with_context = visit.code(4)[3]
    assert f"before: '{CLAIM}" in with_context
    assert f"after:  '{STORED}" in with_context
    visit.see("outside the random range")

    visit.cell(MEMORY_HEAD).click(modifiers=["Shift"])
    visit.see(f"Head {MEMORY_HEAD}")
    visit.settle()
    assert f"off={MEMORY_HEAD}&off={CONTEXT_HEAD}" in visit.page.url
    assert STORED not in visit.code(4)[2].splitlines()[1], "with both off nothing is remembered"

    visit.page.get_by_role("textbox", name="File name").fill("from-browser")
    visit.page.get_by_role("button", name=re.compile(r"Save the list \(2 heads\)")).click()
    visit.see("--headset")
    saved = load_head_set(explorer.folder / "head-sets" / "from-browser.json")
    assert [str(head) for head in saved.ids] == [MEMORY_HEAD, CONTEXT_HEAD]
    visit.settle()
    visit.shoot("explore")
    assert visit.own_complaints == []


def test_the_scores_of_a_run_in_the_dark(visits: Any, explorer: Any) -> None:
    visit = visits(dark=True, source=explorer.run_id, role="context")
    visit.see(f"Head {CONTEXT_HEAD}")
    visit.settle()
    visit.see("not significant (q > 0.05)")
    visit.cell(CONTEXT_HEAD).click()
    visit.see("outside the random range")
    visit.settle()
    visit.shoot("explore-dark")
    assert visit.own_complaints == []


def test_the_page_about_relation_neurons(visits: Any, explorer: Any) -> None:
    visit = visits("neurons", model="engram", ask="The capital of France is", top="3")
    visit.see("Random units")
    visit.see("Save 3 units of capital")
    visit.settle()
    assert all("Paris" in said for said in visit.code(3)[::2])
    visit.shoot("neurons")
    visit.page.get_by_text("zero", exact=True).click()
    visit.see("They are set to zero")
    visit.settle()
    assert "change=zero" in visit.page.url
    visit.page.get_by_role("button", name="Save 3 units of capital").click()
    visit.see("mnemoscope neurons ablate engram")
    saved = load_neuron_set(explorer.folder / "neuron-sets" / "my-units.json")
    assert len(saved.ids) == 3
    assert visit.own_complaints == []


def test_the_page_about_who_reads_the_context(visits: Any, explorer: Any) -> None:
    visit = visits("retrieval", model="engram", length="256", rival="true")
    visit.see("Which heads read it?")
    atlas = visit.page.locator('canvas[data-ready="atlas"]')
    atlas.wait_for(timeout=WAIT)
    visit.settle()
    head = {"x": 24 + 3.5 * 65, "y": 24 + 2.5 * 66}  # margin, then thumbnails with their gaps
    atlas.hover(position=head)
    visit.see("L2.H3")
    atlas.click(position=head)
    visit.see("Map of L2.H3")
    visit.settle()
    assert "layer=2&head=3" in visit.page.url

    window = visit.page.locator('canvas[data-ready="window"]')
    window.scroll_into_view_if_needed()
    box = window.bounding_box()
    visit.page.mouse.move(box["x"] + 60, box["y"] + 200)
    visit.see(re.compile(r"peak . 0\.?\d*.* query \d+"))
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 160, box["y"] + 300, steps=4)
    visit.page.mouse.up()
    visit.settle()
    part = dict(pair.split("=") for pair in urlsplit(visit.page.url).query.split("&"))
    assert 0 < int(part["q0"]) < int(part["q1"]) < 256
    assert 0 < int(part["k0"]) < int(part["k1"]) < 256
    window.dblclick()
    visit.settle()
    assert "q0" not in visit.page.url

    visit.cell("L4.H6").click(timeout=WAIT)
    visit.see("Map of L4.H6")
    compared = visit.page.get_by_text("The same with random heads: ").first
    waiting = visit.page.get_by_role("button", name=re.compile("at the present pace"))
    while not compared.is_visible():  # on a busy machine each part waits for a click
        compared.or_(waiting).first.wait_for(timeout=WAIT)
        if waiting.count():
            waiting.first.click(timeout=WAIT)
            visit.settle()
    visit.settle()
    assert "off=L4.H6" in visit.page.url
    visit.page.get_by_role("button", name="Save them as a head set").click()
    visit.see("mnemoscope prune run")
    saved = load_head_set(explorer.folder / "head-sets" / "my-readers.json")
    assert [str(head) for head in saved.ids] == ["L4.H6"]
    visit.shoot("retrieval")
    assert visit.own_complaints == []


def test_the_page_about_which_documents_a_text_comes_from(visits: Any, explorer: Any) -> None:
    text = f"As they say: {RITE} Is that so? {TOWN}"
    visit = visits("provenance", model="engram", corpus="risky", text=text)
    visit.see("Verbatim occurrence, not cause")
    visit.see("would choose")
    visit.settle()
    marks = visit.page.locator('.traced mark[role="button"]')
    assert [mark.strip() for mark in marks.all_inner_texts()] == [RITE, TOWN]
    unchosen = marks.and_(visit.page.locator('[aria-pressed="false"]'))
    span = unchosen.inner_text().strip()
    unchosen.click()
    visit.see("Span 2 of 2")
    visit.settle()
    assert "span=2" in visit.page.url
    visit.page.locator("code", has_text=span).first.wait_for(timeout=WAIT)
    assert visit.code(2)[0].strip() == span
    documents = visit.page.locator('[data-ready^="document"]')
    assert documents.count() == 0, "texts of a risk index wait"
    visit.page.get_by_text("Show documents of the risk index").click()
    documents.first.wait_for(timeout=WAIT)
    visit.settle()
    shown = " ".join(documents.all_inner_texts())
    assert "<img src=//evil" in shown
    assert visit.page.locator('img[src*="evil"]').count() == 0
    visit.shoot("provenance")
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("button", name="Report (HTML)").click()
    report = Path(waiting.value.path()).read_text()
    assert RITE in report
    assert HOSTILE.split()[0] not in report
    visit.page.get_by_role("link", name="at the end of this span").first.click()
    visit.see("Which heads speak for which answer?")
    visit.settle()
    assert "layer=" in visit.page.url
    assert visit.own_complaints == []


def test_images_of_a_prompt_and_fonts_of_a_configuration_are_never_fetched(visits: Any) -> None:
    visit = visits(prompt="![x](http://example.org/x.png)", context="", mem="<img src=//a.b/c>")
    visit.see("Memory answer:")
    visit.settle()
    assert visit.page.locator('img[src*="example"], img[src*="a.b"]').count() == 0
    blocked = [text for text in visit.complaints if "outside.woff2" in text]
    assert all("Content Security Policy" in text for text in blocked)
    assert blocked, "the hostile configuration is read, and its font is refused"


def test_it_listens_on_loopback_only(explorer: Any) -> None:
    """Read from the kernel: one listener, on 127.0.0.1, whatever configurations say."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp on this system")
    listening = [
        address
        for address, port in map(_local, table.read_text().splitlines()[1:])
        if port == explorer.port
    ]
    assert set(listening) == {"127.0.0.1"}
    tcp6 = Path("/proc/net/tcp6")
    if tcp6.exists():
        ports = [line.split()[1].rsplit(":")[1] for line in tcp6.read_text().splitlines()[1:]]
        assert f"{explorer.port:04X}" not in ports


def _local(line: str) -> tuple[str, int]:
    """Local address and port of a line of /proc/net/tcp (of any state: also of open visits)."""
    address, port = line.split()[1].split(":")
    return socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16)


@pytest.mark.parametrize("path", ["/", "/_stcore/health", "/_stcore/host-config"])
def test_a_foreign_host_is_refused_everywhere(explorer: Any, path: str) -> None:
    request = Request(explorer.url + path, headers={"Host": "evil.example"})
    with pytest.raises(HTTPError) as refused:
        urlopen(request, timeout=10)
    assert refused.value.code == 403


def test_a_foreign_host_is_refused_on_the_websocket(explorer: Any) -> None:
    lines = (
        "GET /_stcore/stream HTTP/1.1",
        f"Host: evil.example:{explorer.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    with socket.create_connection(("127.0.0.1", explorer.port), timeout=10) as wire:
        wire.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert wire.recv(200).split(b"\r\n")[0].split()[1] == b"403"


def test_the_launch_says_its_address_and_what_it_serves(explorer: Any) -> None:
    assert explorer.url in explorer.said
    assert str(explorer.folder / "planted") in explorer.said
    assert str(explorer.folder / "runs") in explorer.said
