/** TCP by number: addresses as the kernel wants them, and the options that a data connection needs. */
import { isIPv4, isIPv6, SocketAddress } from 'node:net';
import { native } from './native.ts';

export const AF_INET = 2;
export const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_LINGER = 13;
const SO_KEEPALIVE = 9;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_THIN_LINEAR_TIMEOUTS = 16;
const TCP_USER_TIMEOUT = 18;

export interface Endpoint {
  /** A literal IPv4 or IPv6 address. */
  readonly address: string;
  readonly port: number;
}

/** Splits `host:port` or `[v6]:port`; null if it is neither. The host is not resolved. */
export function parseHostPort(text: string): { host: string; port: number } | null {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  if (match === null) return null;
  const port = Number(match[3]);
  const host = match[1] ?? match[2];
  return host === undefined || port > 65535 ? null : { host, port };
}

/** struct sockaddr_in or sockaddr_in6. Throws RangeError for what is no literal address. */
export function encodeSockaddr(endpoint: Endpoint): { family: number; bytes: Uint8Array } {
  const { address, port } = endpoint;
  if (isIPv4(address)) {
    const bytes = new Uint8Array(16);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, AF_INET, true);
    view.setUint16(2, port);
    bytes.set(address.split('.').map(Number), 4);
    return { family: AF_INET, bytes };
  }
  if (isIPv6(address)) {
    const bytes = new Uint8Array(28);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, AF_INET6, true);
    view.setUint16(2, port);
    ipv6Groups(address).forEach((group, i) => {
      view.setUint16(8 + 2 * i, group);
    });
    return { family: AF_INET6, bytes };
  }
  throw new RangeError(`'${address}' is no IP address`);
}

/** The eight groups of an IPv6 address (RFC 4291, section 2.2). */
function ipv6Groups(address: string): number[] {
  // SocketAddress normalises an embedded IPv4 part and drops the zone.
  const normal = new SocketAddress({ address: address.split('%')[0]!, family: 'ipv6' }).address;
  const withV4 = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(normal);
  const plain =
    withV4 === null
      ? normal
      : `${withV4[1]}${((Number(withV4[2]) << 8) | Number(withV4[3])).toString(16)}:${((Number(withV4[4]) << 8) | Number(withV4[5])).toString(16)}`;
  const [head = '', tail] = plain.split('::');
  const groups = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((g) => Number.parseInt(g, 16));
  const before = groups(head);
  const after = tail === undefined ? [] : groups(tail);
  return [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
}

/** A listening TCP socket; port 0 takes any free one. Throws KernelError (EADDRINUSE, EADDRNOTAVAIL, EACCES). */
export function listenTcp(endpoint: Endpoint, backlog: number): { fd: number; port: number } {
  const { family, bytes } = encodeSockaddr(endpoint);
  const fd = native.socket(family, SOCK_STREAM);
  try {
    native.setSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, new Int32Array([1]));
    native.bind(fd, bytes);
    native.listen(fd, backlog);
    return { fd, port: native.boundPort(fd) };
  } catch (error) {
    native.close(fd);
    throw error;
  }
}

/** An unconnected TCP socket. */
export function openTcp(family: number): number {
  return native.socket(family, SOCK_STREAM);
}

/**
 * Small messages leave at once; a peer that stops acknowledging is given up after `unackedTimeoutMs`. What is lost while
 * little is under way is sent again every 200 ms, six times (net/ipv4/tcp_timer.c), and not after 200, 600, 1400 ms: lost
 * packets are not to look like a peer that is gone. With BBR the timeouts double all the same: it never sets the threshold by
 * which the kernel knows that slow start is over (include/net/tcp.h, tcp_in_initial_slowstart).
 */
export function tuneDataSocket(fd: number, unackedTimeoutMs: number): void {
  native.setSocketOption(fd, IPPROTO_TCP, TCP_NODELAY, new Int32Array([1]));
  native.setSocketOption(fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, new Int32Array([1]));
  native.setSocketOption(fd, SOL_SOCKET, SO_KEEPALIVE, new Int32Array([1]));
  native.setSocketOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, new Int32Array([unackedTimeoutMs]));
}

/** Makes `close` drop unsent data at once and reset the peer, so that its pages are let go. */
export function resetOnClose(fd: number): void {
  native.setSocketOption(fd, SOL_SOCKET, SO_LINGER, new Int32Array([1, 0]));
}
