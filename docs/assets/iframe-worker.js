/* The theme's search runs in a worker, which browsers refuse to pages that are read from a disk.
   There, a hidden frame runs the worker's script and exchanges the same messages. */
"use strict";

(() => {
  if (location.protocol !== "file:") return;

  /* Run a script in a window; the promise ends when it has run. */
  function run(target, address) {
    return new Promise((done, failed) => {
      const script = target.document.createElement("script");
      Object.assign(script, { src: address, onload: done, onerror: failed });
      target.document.body.append(script);
    });
  }

  function message(data) {
    return new MessageEvent("message", { data: structuredClone(data) });
  }

  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      // Firefox loads an empty frame later, and would lose what is set before.
      inside.document.open();
      inside.document.write("<!doctype html><title>Search</title><body>");
      inside.document.close();
      inside.postMessage = (data) => this.receive(message(data));
      inside.importScripts = async (...addresses) => {
        for (const next of addresses) await run(inside, next);
      };
      this.ready = run(inside, address);
    }

    receive(event) {
      this.dispatchEvent(event);
      this.onmessage?.(event);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(message(data)));
    }

    terminate() {
      this.frame.remove();
    }
  };
})();
