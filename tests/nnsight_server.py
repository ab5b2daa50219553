"""A server for the tests that speaks NDIF's protocol: one model, one request at a time, no key or
one. It has nnsight and transformers, and none of this package.

    python nnsight_server.py FOLDER PORT-FILE [KEY]
"""

import base64
import hashlib
import io
import json
import sys
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import nnsight
import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.tracer import _saves, dec, inc
from transformers import AutoTokenizer

sys.modules["mnemoscope"] = None  # type: ignore[assignment]  # importing it fails, as on a server
torch.set_num_threads(1)
folder, port_file = sys.argv[1:3]
key = sys.argv[3] if len(sys.argv) > 3 else ""
model = nnsight.TransformersModel(
    folder,
    task="text-generation",
    tokenizer=AutoTokenizer.from_pretrained(folder),
    dispatch=True,
    dtype=torch.float32,
)
sessions: dict[str, Queue] = {}


def run(blob: bytes, compress: bool) -> bytes:
    """What NDIF's `execute_traced_block` does."""
    objects = model._remoteable_persistent_objects()
    tracer = RequestModel.deserialize(blob, objects, compress=compress)
    inc()
    try:
        tracer.execute(tracer.info.code)
        kept = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
    finally:
        dec()
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    data = buffer.getvalue()
    return zstandard.ZstdCompressor().compress(data) if compress else data


class Handler(BaseHTTPRequestHandler):
    """POST /request and the websocket /subscribe."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        accept = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        digest = base64.b64encode(hashlib.sha1(accept.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", digest)
        self.end_headers()
        name, queue = str(len(sessions)), Queue()
        sessions[name] = queue
        self.frame(json.dumps({"session_id": name}).encode(), text=True)
        self.frame(queue.get(), text=False)
        self.close_connection = True

    def frame(self, data: bytes, *, text: bool):
        size = len(data)
        head = bytes([0x81 if text else 0x82])
        if size < 126:
            head += bytes([size])
        elif size < 65536:
            head += bytes([126]) + size.to_bytes(2, "big")
        else:
            head += bytes([127]) + size.to_bytes(8, "big")
        self.wfile.write(head + data)
        self.wfile.flush()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if key and self.headers.get("ndif-api-key") != key:
            self.answer(401, {"detail": "Invalid API key."})
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = BytesParser().parsebytes(head + body).get_payload()
        fields = {part.get_param("name", header="content-disposition"): part for part in parts}
        told = json.loads(fields["data"].get_payload(decode=True))
        blob = fields["blob"].get_payload(decode=True)
        received = ResponseModel(id="1", status=Status.RECEIVED)
        self.answer(200, json.loads(received.model_dump_json()))
        job = (blob, told["compress"], sessions[told["session_id"]])
        threading.Thread(target=work, args=job).start()

    def answer(self, code: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def work(blob: bytes, compress: bool, queue: Queue) -> None:
    try:
        done = ResponseModel(id="1", status=Status.COMPLETED, data=run(blob, compress))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        done = ResponseModel(id="1", status=Status.ERROR, description=text)
    queue.put(done.pickle())


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
Path(port_file).with_suffix(".new").write_text(str(server.server_address[1]))
Path(port_file).with_suffix(".new").rename(port_file)
server.serve_forever()
