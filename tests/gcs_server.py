"""A Google Cloud Storage on the loopback: it prints its URL and serves until it is killed.

The package gcp-storage-emulator serves the objects. It knows no preconditions, without which
tensorstore cannot commit a checkpoint, so this adds them: the generation of what is read, and the
refusal of what would be written over another generation.
"""

import threading
import urllib.parse
from functools import partial
from http.server import ThreadingHTTPServer

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


class Handler(RequestHandler):
    """One request at a time, on a condition where the client gives one."""

    lock = threading.Lock()

    def do_GET(self):
        with self.lock:
            generation, query = self.generation(), self.query()
            if generation != "0" and query.get("ifGenerationNotMatch") == generation:
                self.refuse(304)
            elif query.get("ifGenerationMatch", generation) != generation:
                self.refuse(412)
            else:
                self.sent = generation
                super().do_GET()

    def do_POST(self):
        with self.lock:
            named = "name" in self.query()  # not in the body of a multipart upload
            if (
                named
                and self.query().get("ifGenerationMatch", self.generation()) != self.generation()
            ):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.refuse(412)
            else:
                super().do_POST()

    def do_DELETE(self):
        with self.lock:
            if self.query().get("ifGenerationMatch", self.generation()) != self.generation():
                self.refuse(412)
            else:
                super().do_DELETE()

    def query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))

    def generation(self) -> str:
        """That of the object which the request names; "0" where there is none."""
        bucket, _, name = urllib.parse.urlsplit(self.path).path.partition("/o")
        name = urllib.parse.unquote(name.lstrip("/")) or self.query().get("name", "")
        try:
            found = self.storage.get_file_obj(bucket.rpartition("/b/")[2], name)
        except (NotFound, KeyError):
            return "0"
        return found["generation"]

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        if getattr(self, "sent", "0") != "0":
            self.send_header("x-goog-generation", self.sent)
        super().end_headers()

    def log_message(self, format, *args):
        pass


def main():
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    print(f"http://127.0.0.1:{served.server_address[1]}", flush=True)
    served.serve_forever()


if __name__ == "__main__":
    main()
