"""A web server for a folder that answers ranged reads, counts them, and can be made slow or bad.

To an S3 client it is a store of public buckets, the folder's own folders: it lists and serves them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


@dataclass
class RangedServer:
    """What a server does and has done. `seconds` is waited before every answer; `whole` sends files
    whole whatever was asked; `status` is answered to the next `failures` requests for content."""

    folder: Path
    address: str = ""
    seconds: float = 0.0
    whole: bool = False
    status: int = 503
    failures: int = 0
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    lookups: int = 0

    @property
    def bytes(self) -> int:
        """Sent in answer to reads."""
        return sum(stop - start for _, start, stop in self.reads)


_OBJECT = "<Contents><Key>{}</Key><Size>{}</Size></Contents>"
_LISTING = "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>"
_NO_BUCKET = "<Error><Code>NoSuchBucket</Code><Message>no such bucket</Message></Error>"


@contextmanager
def ranged_server(folder: Path) -> Iterator[RangedServer]:
    """Serve `folder` on a free port of this machine."""
    told = RangedServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            told.lookups += 1
            self.answer(with_body=False)

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if "list-type=2" in asked.query:
                self.list_bucket(
                    asked.path.strip("/"), parse_qs(asked.query).get("prefix", [""])[0]
                )
            else:
                self.answer(with_body=True)

        def list_bucket(self, bucket: str, prefix: str) -> None:
            told.lookups += 1
            found = sorted(path for path in (told.folder / bucket / prefix).glob("*"))
            objects = [_OBJECT.format(f"{prefix}{p.name}", p.stat().st_size) for p in found]
            there = (told.folder / bucket).is_dir()
            body = (_LISTING.format("".join(objects)) if there else _NO_BUCKET).encode()
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self, *, with_body: bool) -> None:
            time.sleep(told.seconds)
            path = told.folder / self.path.lstrip("/")
            if with_body and told.failures > 0:
                told.failures -= 1
                self.send_error(told.status)
                return
            if not path.is_file():
                self.send_error(404)
                return
            size, stamp = path.stat().st_size, path.stat().st_mtime_ns
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            ranged = asked is not None and not told.whole
            start, stop = (int(asked[1]), min(size, int(asked[2]) + 1)) if ranged else (0, size)
            if start >= max(size, 1):
                self.send_error(416)
                return
            self.send_response(206 if ranged else 200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", f'"{stamp}-{size}"')
            self.send_header("Last-Modified", formatdate(stamp / 1e9, usegmt=True))
            self.end_headers()
            if with_body:
                told.reads.append((path.name, start, stop))
                with path.open("rb") as file:
                    file.seek(start)
                    self.wfile.write(file.read(stop - start))

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    told.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
