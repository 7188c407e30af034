// The door's table of contents. Every function is declared, typed, in ../native.ts under the same name and in
// the same order; there is no policy and no protocol on this side.
#include "addon.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  blockwire::RegisterRing(env, exports);
  blockwire::RegisterMemory(env, exports);
  blockwire::RegisterDescriptors(env, exports);
  blockwire::RegisterUblk(env, exports);
  blockwire::RegisterTransfer(env, exports);
  blockwire::RegisterChecksum(env, exports);
  return exports;
}

NODE_API_MODULE(blockwire, Init)
