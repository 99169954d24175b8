// A server that knows nothing of us: Debian's node-ws. Each message is a line of the file, written before the next
// frame is looked at.
//
//     node server.js PORT FILE
const fs = require("fs");
const { WebSocketServer } = require("ws");

const [port, file] = process.argv.slice(2);
const out = fs.openSync(file, "a");
new WebSocketServer({ host: "127.0.0.1", port: Number(port) }).on("connection", (socket) => {
  socket.send("hello, whoever you are");
  socket.on("message", (data, isBinary) => {
    fs.writeSync(out, (isBinary ? "hex:" + data.toString("hex") : data.toString()) + "\n");
  });
  socket.on("error", () => {});
});
