// Many small copies in one call: between own memory and a file by position (the pages of ublk's requests), or within own
// memory. And payload out of own pages into a socket without a copy, through a pipe.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

#include "addon.h"

namespace blockwire {
namespace {

// One copy: 32 bytes, laid out as native/transfer.ts writes them.
struct Copy {
  uint64_t address;
  uint64_t position;  // in the file; an address for kWithin
  uint32_t length;
  uint32_t kind;
  int32_t result;
  uint32_t reserved;
};
static_assert(sizeof(Copy) == 32, "layout");

constexpr uint32_t kFromFile = 0;
constexpr uint32_t kToFile = 1;

// transfer(fd, table, count): does the copies in order and returns how many did not do their whole length; each has its
// result, bytes or the negative errno. Never throws.
Napi::Value Transfer(const Napi::CallbackInfo& info) {
  const int fd = Int(info, 0);
  Copy* copies = reinterpret_cast<Copy*>(ViewBytes(info[1]).data);
  const uint32_t count = Uint(info, 2);
  uint32_t failed = 0;
  for (uint32_t i = 0; i < count; i++) {
    Copy& copy = copies[i];
    void* address = reinterpret_cast<void*>(copy.address);
    ssize_t result;
    if (copy.kind == kFromFile) {
      result = pread(fd, address, copy.length, static_cast<off_t>(copy.position));
    } else if (copy.kind == kToFile) {
      result = pwrite(fd, address, copy.length, static_cast<off_t>(copy.position));
    } else {
      memcpy(reinterpret_cast<void*>(copy.position), address, copy.length);
      result = copy.length;
    }
    copy.result = static_cast<int32_t>(result < 0 ? -errno : result);
    if (result != static_cast<ssize_t>(copy.length)) failed++;
  }
  return Napi::Number::New(info.Env(), failed);
}

// pipe(capacity): [read end, write end], non-blocking, with room for at least `capacity` bytes of pages.
Napi::Value Pipe(const Napi::CallbackInfo& info) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) throw SystemError(info.Env(), "pipe2", errno);
  if (fcntl(fds[1], F_SETPIPE_SZ, Int(info, 0)) < 0) {
    const int error = errno;
    close(fds[0]);
    close(fds[1]);
    throw SystemError(info.Env(), "fcntl F_SETPIPE_SZ", error);
  }
  Napi::Array pair = Napi::Array::New(info.Env(), 2);
  pair.Set(0U, Napi::Number::New(info.Env(), fds[0]));
  pair.Set(1U, Napi::Number::New(info.Env(), fds[1]));
  return pair;
}

// One piece of a stream: 16 bytes. Pages are moved by reference, anything else is copied into the socket.
struct Piece {
  uint64_t address;
  uint32_t length;  // what is left of it
  uint32_t kind;    // 0 bytes, 1 pages, 2 pages that are in the pipe already
};
static_assert(sizeof(Piece) == 16, "layout");

constexpr uint32_t kBytes = 0;
constexpr uint32_t kPages = 1;
constexpr uint32_t kPiped = 2;

// Moves as much of one piece as the socket takes now. Returns 0 when it is done, EAGAIN when the socket is full, or another
// positive errno.
int SendPiece(int socket, int pipe_read, int pipe_write, Piece& piece, bool more) {
  while (piece.length > 0) {
    if (piece.kind == kBytes) {
      const ssize_t sent = send(socket, reinterpret_cast<void*>(piece.address), piece.length,
                                MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0));
      if (sent < 0) {
        if (errno == EINTR) continue;
        return errno;
      }
      piece.address += sent;
      piece.length -= sent;
      continue;
    }
    if (piece.kind == kPages) {
      // The pipe is empty and has room for a whole piece: all of it or an error.
      iovec pages = {reinterpret_cast<void*>(piece.address), piece.length};
      const ssize_t mapped = vmsplice(pipe_write, &pages, 1, SPLICE_F_NONBLOCK);
      if (mapped < 0) return errno;
      if (mapped != static_cast<ssize_t>(piece.length)) return EMSGSIZE;
      piece.kind = kPiped;
    }
    const ssize_t moved = splice(pipe_read, nullptr, socket, nullptr, piece.length,
                                 SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0));
    if (moved < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    if (moved == 0) return EPIPE;
    piece.length -= moved;
  }
  return 0;
}

// sendPieces(socket, pipeRead, pipeWrite, table, first, count): sends the pieces from `first` on until all are sent or the
// socket is full. Returns the first piece that is not sent yet (`count`: all are), or the negative errno. Pages of sent pieces
// may be read by the kernel until the peer has acknowledged them. Never throws.
Napi::Value SendPieces(const Napi::CallbackInfo& info) {
  Piece* pieces = reinterpret_cast<Piece*>(ViewBytes(info[3]).data);
  const uint32_t count = Uint(info, 5);
  uint32_t at = Uint(info, 4);
  for (; at < count; at++) {
    const int error = SendPiece(Int(info, 0), Int(info, 1), Int(info, 2), pieces[at], at + 1 < count);
    if (error == EAGAIN) break;
    if (error != 0) return Napi::Number::New(info.Env(), -error);
  }
  return Napi::Number::New(info.Env(), at);
}

}  // namespace

void RegisterTransfer(Napi::Env env, Napi::Object exports) {
  exports.Set("transfer", Napi::Function::New(env, Transfer));
  exports.Set("pipe", Napi::Function::New(env, Pipe));
  exports.Set("sendPieces", Napi::Function::New(env, SendPieces));
}

}  // namespace blockwire
