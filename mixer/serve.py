"""Serves a web page that classifies pictures: python -m mixer.serve --checkpoint=MODEL.npz

The page is at http://127.0.0.1:8000/, for this machine alone unless --host says otherwise. One
drops, pastes or chooses a picture and sees the most probable classes. Programs send the file as the
body of POST /predict and get JSON. MODEL.npz and its flags are those of mixer.predict. See
docs/predict.md.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import http.server
import importlib.resources
import io
import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading

from absl import flags
import numpy as np
from PIL import Image, UnidentifiedImageError

from mixer import cli, console, files, models, predict, pretrained, runtime, sweep
from mixer.errors import InputError
from mixer.input import image_facts, image_files, single_images
from mixer.pretrained import dimensions
from mixer.pretrained.description import Description

_TIMEOUT_SECONDS = 30  # without a byte of a request
_MEGABYTE = 2**20
_ADVICE = 'send the image file itself as the body, as in curl --data-binary @cat.jpg URL'


_FORMATS = ', '.join(ending[1:] for ending in image_files.ENDINGS)


class Refused(Exception):
  """A request that is not answered: its HTTP status, and what the client is told."""

  def __init__(self, status: int, text: str):
    super().__init__(text)
    self.status = status


class Service:
  """Classifies encoded images, one at a time.

  Attributes:
    facts: of the model and the limits, for the page.
    max_bytes: of a file.
  """

  def __init__(
    self,
    trained: pretrained.Pretrained,
    description: Description,
    *,
    top: int,
    max_bytes: int,
    max_pixels: int,
  ):
    self.max_bytes = max_bytes
    self._max_pixels = max_pixels
    self._turns = description.preprocessing.get('exif_orientation', False)
    self._guess = predict.classifier(trained, description, top)
    self._notes: list[str] = []
    self._decode = single_images.decoder(
      description.preprocessing,
      description.image_size,
      description.channels,
      on_change=self._notes.append,
    )
    self._lock = threading.Lock()  # of `_notes`, and for one decoded image in memory at a time
    name = description.model['name']
    height, width = description.image_size
    self.facts = {
      'model': dimensions.called(description.model) if name in models.FAMILIES else name,
      'source': '/'.join(str(trained.source).split('/')[-2:]),
      'image_size': [height, width],
      'num_classes': description.model['num_classes'],
      'loss': description.loss,
      'max_megabytes': max_bytes / _MEGABYTE,
    }
    self._guess(np.zeros((1, height, width, description.channels), np.uint8), 1)  # compiles it

  def predict(self, content: bytes) -> dict:
    """{'top': the guesses as in mixer.predict --json, 'notes': how the image was changed}.

    Raises:
      Refused: the content is no image that can be used; says why, as mixer.predict does.
    """
    with self._lock:
      status = self._check(content)
      self._notes.clear()
      try:
        pixels = self._decode(content)
      except InputError as fault:
        unknown = f': it begins with {content[:8]!r}; {_FORMATS} are read' if status == 415 else ''
        raise Refused(status, f'{fault}{unknown}') from fault
      try:
        (guesses,) = self._guess(pixels[None], 1)
      except InputError as fault:
        raise Refused(500, str(fault)) from fault
      if not self._turns and 'rotated' in image_facts.oddities(content):
        self._notes.append('its EXIF orientation ignored: the model gets it as it is stored')
      return {'top': predict.as_objects(guesses), 'notes': list(self._notes)}

  def _check(self, content: bytes) -> int:
    """The HTTP status if it cannot be decoded; Refused if its header says too many pixels."""
    try:
      with Image.open(io.BytesIO(content)) as image:
        size = image.size
    except UnidentifiedImageError:
      return 415
    except Image.DecompressionBombError:  # which the decoder refuses too
      return 413
    except Exception:  # of damaged files: all kinds; the decoder says what is wrong
      return 400
    try:
      image_facts.check_pixels(size, self._max_pixels)
    except ValueError as fault:
      raise Refused(413, str(fault)) from fault
    return 400


class Page:
  """The page, and the header that permits its own script and style alone."""

  def __init__(self):
    text = importlib.resources.files('mixer').joinpath('serve.html').read_text('utf-8')
    self.content = text.encode()
    self.policy = '; '.join([
      "default-src 'none'",
      f'script-src {_source(text, "script")}',
      f'style-src {_source(text, "style")}',
      'img-src blob: data:',
      "connect-src 'self'",
      "base-uri 'none'",
      "form-action 'none'",
      "frame-ancestors 'none'",
    ])  # fmt: skip


def _source(page: str, tag: str) -> str:
  (text,) = re.findall(f'<{tag}>(.*?)</{tag}>', page, re.DOTALL)
  return files.policy_source(text)


class Server(http.server.ThreadingHTTPServer):
  """Bound to an address when it is made; it listens from `start` on."""

  service: Service
  page: Page

  def __init__(self, host: str, port: int):
    """Raises InputError if the address cannot be had."""
    self.host, self.port = host, port
    with self._explained():
      found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
      self.address_family, *_, address = found[0]
      super().__init__(address, Handler, bind_and_activate=False)
      try:
        self.server_bind()
      except BaseException:
        self.server_close()
        raise
    self.is_local = ipaddress.ip_address(self.server_address[0]).is_loopback

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    try:
      yield
    except OSError as fault:
      where = f'--host={self.host} --port={self.port}'
      if fault.errno == errno.EADDRINUSE:
        raise InputError(
          f'{where}: another program listens there; give another --port, or 0 for a free one.'
        ) from fault
      raise InputError(f'{where}: cannot listen there: {fault.strerror}.') from fault

  def server_bind(self) -> None:
    socketserver.TCPServer.server_bind(self)  # that of HTTPServer asks a name server

  def start(self, service: Service) -> str:
    """Listens, and returns the address of the page."""
    self.service, self.page = service, Page()
    with self._explained():
      self.server_activate()
    host = f'[{self.host}]' if ':' in self.host else self.host
    return f'http://{host}:{self.server_address[1]}/'

  def accepts_host(self, header: str) -> bool:
    """Whether a request is for this server, and not sent by a page whose name leads here."""
    name = re.sub(r':\d+$', '', header.lower())
    return not self.is_local or name in {'localhost', '127.0.0.1', '[::1]', self.host.lower()}

  def handle_error(self, request, client_address) -> None:
    if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):  # the client has gone
      super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
  """GET / is the page, GET /model the facts of the model, POST /predict the classes of an image."""

  protocol_version = 'HTTP/1.1'
  timeout = _TIMEOUT_SECONDS
  server: Server

  def do_GET(self) -> None:
    answers = {
      '/': lambda: (self.server.page.content, 'text/html; charset=utf-8'),
      '/model': lambda: _as_json(self.server.service.facts),
    }
    self._answer(answers)

  def do_POST(self) -> None:
    self._answer({'/predict': lambda: _as_json(self.server.service.predict(self._body()))})

  def _answer(self, answers: dict[str, Callable[[], tuple[bytes, str]]]) -> None:
    self._unread = self._length() or 0
    try:
      self._check_sender()
      path = self.path.partition('?')[0]
      if path not in answers:
        raise Refused(404, f'there is no {self.command} {path}; GET / is the page.')
      status, (content, kind) = 200, answers[path]()
    except Refused as fault:
      status, (content, kind) = fault.status, _as_json({'error': str(fault)})
    self.send_response(status)
    for name, value in (
      ('Content-Type', kind),
      ('Content-Length', str(len(content))),
      ('Connection', 'close'),
      ('Cache-Control', 'no-store'),
      ('Content-Security-Policy', self.server.page.policy),
      ('Cross-Origin-Resource-Policy', 'same-origin'),
      ('Referrer-Policy', 'no-referrer'),
      ('X-Content-Type-Options', 'nosniff'),
    ):
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content)
    self._discard()

  def _check_sender(self) -> None:
    """Refuses requests by pages of other sites."""
    host, origin = self.headers.get('Host', ''), self.headers.get('Origin')
    if not self.server.accepts_host(host):
      raise Refused(403, f'the server is not called {host!r}; use the address that it printed.')
    if origin is not None and origin.partition('://')[2] != host:
      raise Refused(403, f'requests by pages of {origin} are not answered.')

  def _length(self) -> int | None:
    text = self.headers.get('Content-Length', '')
    return int(text) if re.fullmatch('[0-9]{1,18}', text) else None

  def _body(self) -> bytes:
    length, limit = self._length(), self.server.service.max_bytes
    if length is None:
      raise Refused(411, f'the request has no valid Content-Length; {_ADVICE}.')
    if length > limit:
      raise Refused(
        413,
        f'{length / _MEGABYTE:.1f} MB are more than {limit / _MEGABYTE:g}, the limit for a file; '
        '--max_megabytes sets it.',
      )
    if self.headers.get_content_maintype() == 'multipart':
      raise Refused(415, f'it is a form; {_ADVICE}.')
    if not length:
      raise Refused(400, f'the body is empty; {_ADVICE}.')
    content = self.rfile.read(length)
    self._unread -= len(content)
    if self._unread:
      raise ConnectionAbortedError
    return content

  def _discard(self) -> None:
    """Reads the rest of a refused body: most clients read the answer only after sending it all."""
    rest = min(self._unread, 8 * self.server.service.max_bytes)
    while rest > 0 and (part := self.rfile.read(min(rest, _MEGABYTE))):
      rest -= len(part)

  def version_string(self) -> str:
    return 'mixer'

  def log_message(self, *_) -> None:
    pass


def _as_json(value: dict) -> tuple[bytes, str]:
  return json.dumps(value).encode() + b'\n', 'application/json'


def main() -> None:
  given = flags.FLAGS
  with Server(given.host, given.port) as server:
    trained, description = predict.open_model()
    predict.check_head(trained, description)
    runtime.check_backend(given.require)
    service = Service(
      trained,
      description,
      top=given.top,
      max_bytes=given.max_megabytes * _MEGABYTE,
      max_pixels=given.max_pixels,
    )
    sweep.exit_on_sigterm()
    console.print_line(f'listening at {server.start(service)}')
    if not server.is_local:
      predict.note('every machine that reaches this address can use it.')
    server.serve_forever()


def define_flags() -> None:
  predict.define_model_flags()
  flags.DEFINE_string('host', '127.0.0.1', 'The address to listen at; 0.0.0.0 is all of them.')
  flags.DEFINE_integer('port', 8000, '0 chooses a free one.', lower_bound=0, upper_bound=65535)
  flags.DEFINE_integer('max_megabytes', 20, 'Of a file.', lower_bound=1)
  most = image_facts.MAX_PIXELS
  flags.DEFINE_integer('max_pixels', most, 'Of an image.', lower_bound=1, upper_bound=most)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
