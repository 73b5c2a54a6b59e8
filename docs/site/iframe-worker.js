// What Material's search needs beyond its own worker.

// Browsers start no worker from file://; there it runs in a frame.
class FrameWorker extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement("iframe")
    frame.hidden = true
    document.body.append(frame)
    this.inside = frame.contentWindow
    this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
    const script = frame.contentDocument.createElement("script")
    script.src = new URL(url, location)
    this.ready = new Promise(resolve => (script.onload = resolve))
    frame.contentDocument.body.append(script)
  }

  async postMessage(data) {
    await this.ready
    this.inside.dispatchEvent(new MessageEvent("message", { data }))
  }
}

// A word that begins with a hyphen would be excluded; here it is an option.
window.Worker = class extends (location.protocol === "file:" ? FrameWorker : Worker) {
  postMessage(message) {
    const query = typeof message.data === "string"
    super.postMessage(query ? { ...message, data: message.data.replace(/(^|\s)-+/g, "$1") } : message)
  }
}
