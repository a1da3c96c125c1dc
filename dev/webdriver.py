"""A few commands of WebDriver (W3C), by which chromedriver drives a real Chromium."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# Key codes of WebDriver.
KEYS = {"Tab": "\ue004", "Left": "\ue012", "Right": "\ue014", "Shift": "\ue008", "Space": " "}


def missing() -> str | None:
    """Says what is missing for a browser, or nothing."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)}: apt install chromium chromium-driver" if absent else None


class Browser:
    """A headless Chromium without a network: what is not on this machine cannot be reached."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        quiet = subprocess.DEVNULL
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=quiet, stderr=quiet)
        self.base = f"http://127.0.0.1:{port}"
        self.session = ""
        offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", offline]
        flags += [f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        options = {"args": flags, "binary": shutil.which("chromium")}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.wait_until_ready()
        answer = self.send("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        self.session = f"/session/{answer['sessionId']}"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.send("GET", "/status")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def send(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, url: str) -> None:
        self.send("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """Returns what a piece of JavaScript returns, in the page."""
        return self.send("POST", f"{self.session}/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Waits until an expression in the page is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {script}; the page says {self.errors()}")
            time.sleep(0.1)
        return value

    def press(self, *keys: str) -> None:
        """Presses keys one after another; Shift stays down for the next one."""
        actions, held = [], []
        for key in keys:
            code = KEYS.get(key, key)
            actions.append({"type": "keyDown", "value": code})
            if key == "Shift":
                held.append(code)
                continue
            actions += [{"type": "keyUp", "value": code}, *({"type": "keyUp", "value": other} for other in held)]
            held = []
        self.act({"type": "key", "id": "keyboard", "actions": actions})

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Drags the mouse between two points of the window."""
        move = lambda point: {"type": "pointerMove", "duration": 20, "x": int(point[0]), "y": int(point[1])}
        button = lambda kind: {"type": kind, "button": 0}
        actions = [move(start), button("pointerDown"), move(end), button("pointerUp")]
        self.act({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions})

    def act(self, source: dict) -> None:
        self.send("POST", f"{self.session}/actions", {"actions": [source]})
        self.send("DELETE", f"{self.session}/actions")

    def errors(self) -> list[str]:
        """Errors of the page since the last call: exceptions, what was not loaded, what its policy forbids."""
        entries = self.send("POST", f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def devtools(self, command: str, **params: Any) -> Any:
        return self.send("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": params})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("GET", f"{self.session}/screenshot")))

    def close(self) -> None:
        try:
            if self.session:
                self.send("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait()
