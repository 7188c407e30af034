/**
 * The client's side of the fixed newstyle negotiation, as a pure state machine: bytes in, bytes and a state out.
 *
 *   greeting ──▶ [structured ──▶ [contexts ──▶]] go ──▶ ready
 *                                                 └──▶ exportName ──▶ ready      (servers without NBD_OPT_GO)
 *   anything unexpected ──▶ failed
 *
 * The caller keeps unconsumed bytes and offers them again with more behind them.
 */
import {
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_INIT_MAGIC_HI,
  NBD_INIT_MAGIC_LO,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_REPLY_MAGIC_HI,
  NBD_OPT_REPLY_MAGIC_LO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTS_MAGIC_HI,
  NBD_OPTS_MAGIC_LO,
  NBD_PAYLOAD_SIZE_BYTES_MAX,
  NBD_REP_ACK,
  NBD_REP_ERR_UNSUP,
  NBD_REP_FLAG_ERROR,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
} from './constants.ts';
import { decodeString, HandshakeOutput, writeOption } from './options.ts';
import { FIELD_INVALID, readUint64 } from './request.ts';

const GREETING_SIZE_BYTES = 18;
const REPLY_HEADER_SIZE_BYTES = 20;
/** The longest reply data that is read: a message of 4096 bytes and its fields fit well. */
const REPLY_DATA_SIZE_BYTES_MAX = 16 * 1024;
/** Information replies that a server may send before it ends its answer. */
const REPLIES_COUNT_MAX = 256;

export type ClientHandshakeState =
  | 'greeting'
  | 'structured'
  | 'contexts'
  | 'go'
  | 'exportName'
  | 'ready'
  | 'failed';

/** What the server said when the transmission phase begins. */
export interface ClientHandshakeResult {
  readonly sizeBytes: number;
  /** NBD_FLAG_* ("Transmission flags"). */
  readonly transmissionFlags: number;
  /** Whether replies to reads come in chunks. */
  readonly structuredReplies: boolean;
  /** Metadata contexts that the server has selected, by name. */
  readonly contextIds: ReadonlyMap<string, number>;
  readonly blockSizeMinBytes: number;
  readonly blockSizePreferredBytes: number;
  readonly payloadSizeMaxBytes: number;
}

export interface ClientHandshakeFailure {
  /** The NBD_REP_ERR_* that the server answered, or null if it broke the protocol. */
  readonly reply: number | null;
  readonly message: string;
}

export interface ClientHandshakeOptions {
  readonly exportName: string;
  /** Ask for structured replies; a server without them is used with simple ones. */
  readonly structuredReplies: boolean;
  /** Metadata contexts to be selected, with structured replies; those that the server has not are left out. */
  readonly metaContexts?: readonly string[];
}

export class ClientHandshake {
  readonly #options: ClientHandshakeOptions;
  readonly #output = new HandshakeOutput();
  #state: ClientHandshakeState = 'greeting';
  #result: ClientHandshakeResult | null = null;
  #failure: ClientHandshakeFailure | null = null;
  #structuredReplies = false;
  readonly #contextIds = new Map<string, number>();
  #noZeroes = false;
  #repliesSeen = 0;
  #sizeBytes = FIELD_INVALID;
  #transmissionFlags = 0;
  // What holds when the server does not tell ("Block size constraints").
  #blockSizeMinBytes = 1;
  #blockSizePreferredBytes = 4096;
  #payloadSizeMaxBytes = NBD_PAYLOAD_SIZE_BYTES_MAX;

  constructor(options: ClientHandshakeOptions) {
    this.#options = options;
  }

  get state(): ClientHandshakeState {
    return this.#state;
  }

  /** Set in state `ready`. */
  get result(): ClientHandshakeResult | null {
    return this.#result;
  }

  /** Set in state `failed`. */
  get failure(): ClientHandshakeFailure | null {
    return this.#failure;
  }

  /** Bytes to send, taken out. */
  takeOutput(): Uint8Array {
    return this.#output.take();
  }

  /** Takes what it can use and returns how many bytes that was; bytes behind the handshake are left alone. */
  consume(bytes: Uint8Array): number {
    let consumed = 0;
    for (;;) {
      const rest = bytes.subarray(consumed);
      let step = 0;
      if (this.#state === 'greeting') step = this.#readGreeting(rest);
      else if (this.#state === 'exportName') step = this.#readExportName(rest);
      else if (isWaitingForReply(this.#state)) step = this.#readReply(rest);
      if (step === 0) return consumed;
      consumed += step;
    }
  }

  #readGreeting(bytes: Uint8Array): number {
    if (bytes.length < GREETING_SIZE_BYTES) return 0;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const flags = view.getUint16(16);
    if (view.getUint32(0) !== NBD_INIT_MAGIC_HI || view.getUint32(4) !== NBD_INIT_MAGIC_LO) {
      this.#fail(null, 'the peer is no NBD server');
    } else if (view.getUint32(8) !== NBD_OPTS_MAGIC_HI || view.getUint32(12) !== NBD_OPTS_MAGIC_LO) {
      this.#fail(null, 'the server speaks the oldstyle negotiation, which has no export names');
    } else if ((flags & NBD_FLAG_FIXED_NEWSTYLE) === 0) {
      this.#fail(null, 'the server does not speak the fixed newstyle negotiation');
    } else {
      this.#noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
      this.#output.uint32(NBD_FLAG_C_FIXED_NEWSTYLE | (this.#noZeroes ? NBD_FLAG_C_NO_ZEROES : 0));
      if (this.#options.structuredReplies) {
        this.#state = 'structured';
        writeOption(this.#output, NBD_OPT_STRUCTURED_REPLY, new Uint8Array(0));
      } else {
        this.#sendGo();
      }
    }
    return GREETING_SIZE_BYTES;
  }

  #sendGo(): void {
    this.#state = 'go';
    const data = new HandshakeOutput().countedString(this.#options.exportName);
    writeOption(this.#output, NBD_OPT_GO, data.uint16(1).uint16(NBD_INFO_BLOCK_SIZE).take());
  }

  #readReply(bytes: Uint8Array): number {
    if (bytes.length < REPLY_HEADER_SIZE_BYTES) return 0;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const type = view.getUint32(12);
    const length = view.getUint32(16);
    if (view.getUint32(0) !== NBD_OPT_REPLY_MAGIC_HI || view.getUint32(4) !== NBD_OPT_REPLY_MAGIC_LO) {
      this.#fail(null, 'the server answered an option without the magic of a reply');
    } else if (view.getUint32(8) !== this.#optionAsked()) {
      this.#fail(null, 'the server answered an option that was not asked');
    } else if (length > REPLY_DATA_SIZE_BYTES_MAX || ++this.#repliesSeen > REPLIES_COUNT_MAX) {
      this.#fail(null, 'the server answers more than a client has to read');
    } else {
      const end = REPLY_HEADER_SIZE_BYTES + length;
      if (bytes.length < end) {
        this.#repliesSeen--;
        return 0;
      }
      const data = bytes.subarray(REPLY_HEADER_SIZE_BYTES, end);
      if (this.#state === 'go') this.#handleGoReply(type, data);
      else if (this.#state === 'contexts') this.#handleContextReply(type, data);
      else this.#handleStructuredReply(type);
      return end;
    }
    return REPLY_HEADER_SIZE_BYTES;
  }

  #handleStructuredReply(type: number): void {
    // Any error means: not on this server.
    if (type === NBD_REP_ACK) this.#structuredReplies = true;
    else if (type < NBD_REP_FLAG_ERROR) {
      this.#fail(null, `reply ${type} to NBD_OPT_STRUCTURED_REPLY`);
      return;
    }
    const { metaContexts = [] } = this.#options;
    if (this.#structuredReplies && metaContexts.length > 0) this.#sendContexts(metaContexts);
    else this.#sendGo();
  }

  #sendContexts(names: readonly string[]): void {
    this.#state = 'contexts';
    const data = new HandshakeOutput().countedString(this.#options.exportName).uint32(names.length);
    for (const name of names) data.countedString(name);
    writeOption(this.#output, NBD_OPT_SET_META_CONTEXT, data.take());
  }

  #handleContextReply(type: number, data: Uint8Array): void {
    if (type === NBD_REP_META_CONTEXT && data.length >= 4) {
      const name = decodeString(data.subarray(4));
      const id = new DataView(data.buffer, data.byteOffset, data.byteLength).getUint32(0);
      if (name !== null) this.#contextIds.set(name, id);
    } else if (type === NBD_REP_ACK || type >= NBD_REP_FLAG_ERROR) {
      // An error means: none. What is wrong with the export itself is told by NBD_OPT_GO.
      this.#sendGo();
    } else {
      this.#fail(null, `reply ${type} to NBD_OPT_SET_META_CONTEXT`);
    }
  }

  #optionAsked(): number {
    if (this.#state === 'go') return NBD_OPT_GO;
    return this.#state === 'contexts' ? NBD_OPT_SET_META_CONTEXT : NBD_OPT_STRUCTURED_REPLY;
  }

  #handleGoReply(type: number, data: Uint8Array): void {
    if (type === NBD_REP_ERR_UNSUP) {
      this.#state = 'exportName';
      writeOption(this.#output, NBD_OPT_EXPORT_NAME, new TextEncoder().encode(this.#options.exportName));
    } else if (type >= NBD_REP_FLAG_ERROR) {
      const said = decodeString(data) ?? '';
      // Without its parameters: a capability is for nobody's log.
      const [name] = this.#options.exportName.split('?');
      this.#fail(type, `the server refuses export '${name}'${said === '' ? '' : `: ${said}`}`);
    } else if (type === NBD_REP_INFO) {
      this.#handleInfo(data);
    } else if (type === NBD_REP_ACK) {
      this.#finish();
    } else {
      this.#fail(null, `reply ${type} to NBD_OPT_GO`);
    }
  }

  #handleInfo(data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    const type = data.length < 2 ? -1 : view.getUint16(0);
    if (type === NBD_INFO_EXPORT && data.length === 12) {
      this.#sizeBytes = readUint64(view, 2);
      this.#transmissionFlags = view.getUint16(10);
    } else if (type === NBD_INFO_BLOCK_SIZE && data.length === 14) {
      this.#blockSizeMinBytes = view.getUint32(2);
      this.#blockSizePreferredBytes = view.getUint32(6);
      this.#payloadSizeMaxBytes = view.getUint32(10);
      const ordered =
        this.#blockSizeMinBytes > 0 && this.#payloadSizeMaxBytes >= Math.max(1, this.#blockSizeMinBytes);
      if (!ordered) this.#fail(null, 'block size constraints that contradict themselves');
    } else if (type === -1 || type === NBD_INFO_EXPORT || type === NBD_INFO_BLOCK_SIZE) {
      this.#fail(null, 'an information reply of the wrong length');
    }
  }

  #readExportName(bytes: Uint8Array): number {
    const length = 10 + (this.#noZeroes ? 0 : 124);
    if (bytes.length < length) return 0;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    this.#sizeBytes = readUint64(view, 0);
    this.#transmissionFlags = view.getUint16(8);
    this.#finish();
    return length;
  }

  #finish(): void {
    if (this.#sizeBytes === FIELD_INVALID) {
      this.#fail(null, 'the server did not tell a usable size of the export');
      return;
    }
    this.#state = 'ready';
    this.#result = {
      sizeBytes: this.#sizeBytes,
      transmissionFlags: this.#transmissionFlags,
      structuredReplies: this.#structuredReplies,
      contextIds: this.#contextIds,
      blockSizeMinBytes: this.#blockSizeMinBytes,
      blockSizePreferredBytes: this.#blockSizePreferredBytes,
      payloadSizeMaxBytes: this.#payloadSizeMaxBytes,
    };
  }

  #fail(reply: number | null, message: string): void {
    this.#state = 'failed';
    this.#failure = { reply, message };
  }
}

function isWaitingForReply(state: ClientHandshakeState): boolean {
  return state === 'structured' || state === 'contexts' || state === 'go';
}
