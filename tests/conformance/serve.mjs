// Runs the suite's server, given as the first argument, on loopback: by itself it listens on all interfaces.
import net from 'node:net'
import { pathToFileURL } from 'node:url'

const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (port) {
  return listen.call(this, port, '127.0.0.1')
}
await import(pathToFileURL(process.argv[2]))
