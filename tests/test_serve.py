"""mixer.serve: what it answers over a socket, and its page in a browser."""

import base64
import concurrent.futures
import contextlib
import hashlib
import html
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from etils import epath
import numpy as np
from PIL import Image
import pytest

from mixer import pretrained, serve
from mixer.errors import InputError
from mixer.input import single_images
import reference
import runs
import sets
import weights

NAMES = ['<img src=x onerror="document.title=1">', 'b & c', 'd', 'e', 'f', 'g', 'h']
BROWSERS = (
  'chromium', 'chromium-browser', 'chromium-headless-shell', 'google-chrome', 'chrome',
)  # fmt: skip
RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('model')
  facts = {
    'model': {'name': 'Mixer', 'num_blocks': 3, **weights.SIZES, 'num_classes': 7},
    'image_size': 8, 'channels': 3, 'preprocessing': {'name': 'none', 'value_range': [-1, 1]},
    'loss': 'softmax', 'class_names': NAMES,
  }  # fmt: skip
  pretrained.save_model(epath.Path(path), weights.tree(num_classes=7), facts)
  return path


@pytest.fixture(scope='module')
def server(workdir):
  trained = pretrained.open(workdir)
  with serve.Server('127.0.0.1', 0) as made:
    service = serve.Service(
      trained, trained.describe(), top=5, max_bytes=2**20, max_pixels=400_000
    )  # fmt: skip
    made.url = made.start(service)
    thread = threading.Thread(target=made.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()


def ask(server, method, path, body=None, **headers):
  """(status, headers, content) of an answer; the JSON of a content that is."""
  connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
  names = {name.replace('_', '-'): value for name, value in headers.items()}
  connection.request(method, path, body, names)
  answer = connection.getresponse()
  content = answer.read()
  is_json = answer.getheader('Content-Type') == 'application/json'
  return answer.status, answer.headers, json.loads(content) if is_json else content


def wanted(workdir, pixels):
  """The probabilities by NumPy."""
  params = pretrained.load(workdir / 'model.npz')
  _, logits = reference.forward(params, pixels / 127.5 - 1, (4, 4))
  values = np.exp(logits - logits.max(axis=1, keepdims=True))
  return values / values.sum(axis=1, keepdims=True)


def test_the_page_and_the_model(server, workdir):
  status, headers, page = ask(server, 'GET', '/?x')
  assert status == 200 and headers['Content-Type'] == 'text/html; charset=utf-8'
  policy = dict(part.split(' ', 1) for part in headers['Content-Security-Policy'].split('; '))
  assert policy['default-src'] == policy['form-action'] == policy['frame-ancestors'] == "'none'"
  assert re.fullmatch(r"'sha256-[\w+/=]{44}'", policy['script-src'])
  assert b'onclick' not in page and b'innerHTML' not in page
  status, _, answer = ask(server, 'GET', '/x')
  assert (status, answer) == (404, {'error': 'there is no GET /x; GET / is the page.'})
  status, headers, facts = ask(server, 'GET', '/model', Host='LOCALHOST:1')
  assert (status, headers['X-Content-Type-Options']) == (200, 'nosniff')
  assert facts == {
    'model': 'a Mixer of 3 blocks of width 8 (MLPs 16) on patches of 4 x 4',
    'source': f'{workdir.name}/model.npz',
    'image_size': [8, 8], 'num_classes': 7, 'loss': 'softmax', 'max_megabytes': 1,
  }  # fmt: skip


def test_requests_at_once_get_their_own_answers(server, workdir):
  origin = server.url.rstrip('/')
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    answers = list(
      pool.map(lambda x: ask(server, 'POST', '/predict', sets.encode(x), Origin=origin), IMAGES)
    )
  for (status, _, answer), row in zip(answers, wanted(workdir, IMAGES)):
    assert status == 200 and answer['notes'] == []
    order = np.argsort(-row)[:5]
    assert [guess['index'] for guess in answer['top']] == order.tolist()
    assert [guess['name'] for guess in answer['top']] == [NAMES[i] for i in order]
    np.testing.assert_allclose([g['probability'] for g in answer['top']], row[order], atol=1e-5)


def test_changes_of_a_picture_are_named(server):
  content, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = 6
  Image.new('L', (20, 10), 90).save(content, 'JPEG', exif=exif)
  status, _, answer = ask(server, 'POST', '/predict', content.getvalue())
  assert status == 200 and answer['notes'] == [
    'made three equal channels of its grey, since the model takes colour',
    'resized to 8 x 8 pixels, without keeping its shape',
    'its EXIF orientation ignored: the model gets it as it is stored',
  ]


PNG = sets.encode(IMAGES[0])
ADVICE = 'send the image file itself as the body, as in curl --data-binary @cat.jpg URL.'


@pytest.mark.parametrize(
  ('body', 'headers', 'status', 'message'),
  [
    (b'', {}, 400, f'the body is empty; {ADVICE}'),
    (
      PNG,
      {'Content_Length': '-1'},
      411,
      f'the request has no valid Content-Length; {ADVICE}',
    ),
    (
      bytes(3 * 2**20),
      {},
      413,
      '3.0 MB are more than 1, the limit for a file; --max_megabytes sets it.',
    ),
    (PNG, {'Content_Type': 'multipart/form-data; boundary=x'}, 415, f'it is a form; {ADVICE}'),
    (b'GIF89', {}, 415, None),
    (b'a picture', {'Content_Type': 'image/png'}, 415, None),
    (PNG[:60], {}, 400, None),
    (
      sets.encode(np.zeros((500, 900), np.uint8)),
      {},
      413,
      '900 x 500 pixels are more than 400000, the limit against decompression bombs; max_pixels '
      'sets it',
    ),
    (
      PNG,
      {'Host': 'evil.example:8000'},
      403,
      "the server is not called 'evil.example:8000'; use the address that it printed.",
    ),
    (
      PNG,
      {'Origin': 'http://evil.example'},
      403,
      'requests by pages of http://evil.example are not answered.',
    ),
    (PNG, {'Origin': 'null'}, 403, 'requests by pages of null are not answered.'),
  ],
)
def test_what_is_refused(server, body, headers, status, message):
  found, sent, answer = ask(server, 'POST', '/predict', body, **headers)
  if message is None:  # that of mixer.predict
    decode = single_images.decoder({'name': 'none', 'value_range': [-1, 1]}, (8, 8), 3)
    with pytest.raises(InputError) as caught:
      decode(body)
    message = str(caught.value)
    if status == 415:
      message += f': it begins with {body[:8]!r}; apng, '
      assert ', jpg, ' in answer['error'] and answer['error'].endswith(' are read')
      answer['error'] = answer['error'][: len(message)]
  assert (found, answer) == (status, {'error': message})
  assert 'default-src' in sent['Content-Security-Policy']


def test_a_client_that_goes_and_values_that_are_not_finite(server, monkeypatch, capfd):
  with socket.create_connection(server.server_address[:2]) as client:
    client.sendall(b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nabc')
    client.shutdown(socket.SHUT_WR)
    assert client.recv(10) == b''
  assert ask(server, 'POST', '/predict', PNG)[0] == 200

  def guess(*_):
    raise InputError('the values are not finite')

  monkeypatch.setattr(server.service, '_guess', guess)
  found = ask(server, 'POST', '/predict', PNG)
  assert found[0] == 500 and found[2] == {'error': 'the values are not finite'}
  assert capfd.readouterr() == ('', '')


def test_addresses(server):
  taken = server.server_address[1]
  for host, port, message in (
    (
      '127.0.0.1',
      taken,
      'another program listens there; give another --port, or 0 for a free one.',
    ),
    ('no.such.invalid', 0, 'cannot listen there: '),
    ('203.0.113.1', 0, 'cannot listen there: Cannot assign requested address.'),
  ):
    with pytest.raises(InputError, match=f'^--host={host} --port={port}: {message}'):
      serve.Server(host, port)
  with serve.Server('0.0.0.0', 0) as made:
    assert not made.is_local and made.accepts_host('any.name')
  with serve.Server('localhost', 0) as made:
    assert made.is_local and made.accepts_host('localhost:80') and not made.accepts_host('')


def test_signals_end_the_program(workdir, tmp_path):
  """At once, although a client holds a connection open."""
  env = runs.environment()
  command = [sys.executable, '-m', 'mixer', 'serve', f'--checkpoint={workdir}', '--port=0']
  programs = [
    subprocess.Popen(
      [*command, '--require=cpu'], cwd=runs.ROOT, env=env, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for _ in range(2)
  ]  # fmt: skip
  ends = ((signal.SIGINT, 130, 'error: stopped by Ctrl-C.\n'), (signal.SIGTERM, 75, ''))
  for program, (number, status, message) in zip(programs, ends):
    with program, contextlib.ExitStack() as failing:
      failing.callback(program.kill)  # otherwise a failure would wait for it
      line = program.stdout.readline()
      port = re.fullmatch(r'listening at http://127\.0\.0\.1:(\d+)/\n', line)[1]
      with socket.create_connection(('127.0.0.1', int(port))) as client:
        client.sendall(b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n')
        start = time.monotonic()
        program.send_signal(number)
        assert (program.wait(20), program.stderr.read()) == (status, message)
        assert time.monotonic() - start < 5


USE = """
addEventListener('load', async () => {
  const find = query => document.querySelector(query);
  const texts = query => [...document.querySelectorAll(query)].map(node => node.textContent);
  const until = async done => { while (!done()) await new Promise(go => setTimeout(go, 20)); };
  const holding = (name, text) => {
    const items = new DataTransfer();
    items.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name));
    return items;
  };
  const answer = async name => {
    await until(() => texts('#file')[0] === name && !find('#result.busy'));
    const bars = [...document.querySelectorAll('.bar')].map(bar =>
      bar.firstChild.getBoundingClientRect().width / bar.getBoundingClientRect().width);
    return {names: texts('.name'), percents: texts('.percent'), bars, error: texts('#error')[0]};
  };
  await until(() => texts('#facts')[0]);
  find('input').files = holding('<b>cat</b>.png', 'FIRST').files;
  find('input').dispatchEvent(new Event('change'));
  const found = {chosen: await answer('<b>cat</b>.png')};
  await until(() => find('img').naturalWidth && !find('img').hidden);
  const size = {width: find('img').naturalWidth, images: document.images.length,
    overflow: document.documentElement.scrollWidth - innerWidth, model: texts('h1')[0]};
  find('#drop').dispatchEvent(
    new DragEvent('drop', {dataTransfer: holding('2.png', 'SECOND'), bubbles: true}));
  found.dropped = await answer('2.png');
  dispatchEvent(new ClipboardEvent('paste', {clipboardData: holding('3.png', btoa('text'))}));
  found.pasted = await answer('3.png');
  document.title = JSON.stringify({...found, size});
});
"""


def test_in_a_browser(server, workdir, tmp_path):
  """Under its policy, a picture is shown, with its classes as text and their bars."""
  browser = os.environ.get('BROWSER_FOR_TESTS') or next(
    filter(None, map(shutil.which, BROWSERS)), ''
  )
  if not browser:
    pytest.skip(f'no browser: none of {", ".join(BROWSERS)} is installed')
  script = USE
  for place, pixels in zip(('FIRST', 'SECOND'), IMAGES):
    script = script.replace(place, base64.b64encode(sets.encode(pixels)).decode())
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  page = server.page = serve.Page()
  page.content = page.content.replace(b'</body>', f'<script>{script}</script></body>'.encode())
  page.policy = page.policy.replace('script-src ', f"script-src 'sha256-{digest}' ")
  done = subprocess.run(
    [browser, '--headless', '--no-sandbox', '--disable-gpu', '--window-size=600,900',
     f'--user-data-dir={tmp_path}/profile', '--virtual-time-budget=5000', '--dump-dom',
     server.url],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  found = json.loads(html.unescape(re.search(r'<title>(.*?)</title>', done.stdout)[1]))
  for shown, row in zip((found['chosen'], found['dropped']), wanted(workdir, IMAGES[:2])):
    order = np.argsort(-row)[:5]
    assert shown['names'] == [NAMES[i] for i in order] and shown['error'] == ''
    assert shown['percents'] == [f'{100 * row[i]:.1f}\xa0%' for i in order]
    np.testing.assert_allclose(shown['bars'], row[order], atol=0.01)
  assert found['pasted']['names'] == []
  assert found['pasted']['error'].startswith('cannot identify image file: it begins with ')
  size = found['size']
  assert size['overflow'] <= 0
  assert (size['images'], size['width'], size['model']) == (1, 8, server.service.facts['model'])
