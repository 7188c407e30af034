/**
 * The server's side of the fixed newstyle negotiation, as a pure state machine: bytes in, bytes and a state out.
 *
 *   greeting ──▶ clientFlags ──▶ options ◀──▶ waitingForExport     (the caller looks an export up)
 *                     │             │
 *                     ▼             ▼
 *                  closed      transmission                        (`outcome` tells what was agreed)
 *
 * The caller keeps unconsumed bytes and offers them again with more behind them. An option is consumed only when it
 * is there as a whole; longer data than OPTION_SIZE_BYTES_MAX is skipped and refused.
 */
import {
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_FLAG_SEND_DF,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_INIT_MAGIC_HI,
  NBD_INIT_MAGIC_LO,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTS_MAGIC_HI,
  NBD_OPTS_MAGIC_LO,
  NBD_REP_ACK,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
} from './constants.ts';
import { decodeString, HandshakeOutput, OptionReader, writeOptionReply } from './options.ts';
import { REPLY_EXTENDED, REPLY_SIMPLE, REPLY_STRUCTURED, type ReplyMode } from './reply.ts';

const OPTION_HEADER_SIZE_BYTES = 16;
/** The longest option data that is read; a caller's buffer must hold this and 16 bytes of header. */
export const OPTION_SIZE_BYTES_MAX = 12 * 1024;
/** Longer data than this ends the connection instead of being skipped. */
const OPTION_SKIP_BYTES_MAX = 1024 * 1024;
/** No sane client haggles this long. */
const OPTIONS_COUNT_MAX = 512;
const QUERIES_COUNT_MAX = 64;
/** Each costs a chunk in every answer; more than these are not selected. */
const CONTEXTS_SELECTED_MAX = 8;

/** What a server offers under one name. */
export interface ExportDescription {
  readonly name: string;
  readonly sizeBytes: number;
  /** NBD_FLAG_* ("Transmission flags"); SEND_DF is added when structured replies were agreed. */
  readonly transmissionFlags: number;
  readonly blockSizeMinBytes: number;
  readonly blockSizePreferredBytes: number;
  readonly payloadSizeMaxBytes: number;
  /** Names of the metadata contexts that can be selected, such as `base:allocation`. */
  readonly metaContexts: readonly string[];
  /** Whether a name that is not among them can be selected all the same: a context with a parameter. */
  readonly acceptsContext?: (name: string) => boolean;
  readonly description?: string;
}

/** Why an export cannot be had: an NBD_REP_ERR_* and a sentence for the user. */
export interface ExportRefusal {
  readonly reply: number;
  readonly message: string;
}

export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

/** What was agreed when the transmission phase begins. */
export interface ServerHandshakeOutcome {
  readonly exportName: string;
  readonly replyMode: ReplyMode;
  readonly metaContexts: readonly MetaContext[];
}

export type ServerHandshakeState =
  | 'clientFlags'
  | 'options'
  | 'waitingForExport'
  | 'transmission'
  /** Send what is left in the output, then close. `closeReason` says why. */
  | 'closed';

interface PendingLookup {
  readonly option: number;
  readonly name: string;
  readonly infos: readonly number[];
  readonly queries: readonly string[];
}

export interface ServerHandshakeOptions {
  /** Names that NBD_OPT_LIST answers. */
  readonly listExports: () => Iterable<string>;
  /** Whether NBD_OPT_EXTENDED_HEADERS is accepted. */
  readonly extendedHeaders: boolean;
}

export class ServerHandshake {
  readonly #options: ServerHandshakeOptions;
  readonly #output = new HandshakeOutput();
  #state: ServerHandshakeState = 'clientFlags';
  #closeReason: string | null = null;
  #outcome: ServerHandshakeOutcome | null = null;
  #noZeroes = false;
  #replyMode: ReplyMode = REPLY_SIMPLE;
  #lookup: PendingLookup | null = null;
  /** The export that they were selected for: several names may mean the same one. */
  #contextsOf: string | null = null;
  #contexts: readonly MetaContext[] = [];
  #skipBytes = 0;
  #optionsSeen = 0;

  constructor(options: ServerHandshakeOptions) {
    this.#options = options;
    this.#output.uint32(NBD_INIT_MAGIC_HI).uint32(NBD_INIT_MAGIC_LO);
    this.#output.uint32(NBD_OPTS_MAGIC_HI).uint32(NBD_OPTS_MAGIC_LO);
    this.#output.uint16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  }

  get state(): ServerHandshakeState {
    return this.#state;
  }

  get closeReason(): string | null {
    return this.#closeReason;
  }

  get outcome(): ServerHandshakeOutcome | null {
    return this.#outcome;
  }

  /** In `waitingForExport`: the name to look up. Answer with `answerExport`. */
  get exportWanted(): string | null {
    return this.#lookup?.name ?? null;
  }

  /** Bytes to send, taken out. */
  takeOutput(): Uint8Array {
    return this.#output.take();
  }

  /**
   * Takes what it can use and returns how many bytes that was. Bytes behind the last option belong to the
   * transmission phase and are left alone.
   */
  consume(bytes: Uint8Array): number {
    let consumed = 0;
    for (;;) {
      const step = this.#step(bytes.subarray(consumed));
      if (step === 0) return consumed;
      consumed += step;
    }
  }

  /** Answers the lookup of `waitingForExport`. */
  answerExport(answer: ExportDescription | ExportRefusal): void {
    const lookup = this.#lookup;
    if (this.#state !== 'waitingForExport' || lookup === null) throw new Error('no export was asked for');
    this.#lookup = null;
    this.#state = 'options';
    if ('reply' in answer) {
      // NBD_OPT_EXPORT_NAME has no way to answer an error.
      if (lookup.option === NBD_OPT_EXPORT_NAME) this.#close(answer.message);
      else this.#reply(lookup.option, answer.reply, new TextEncoder().encode(answer.message));
      return;
    }
    switch (lookup.option) {
      case NBD_OPT_EXPORT_NAME:
        this.#answerExportName(answer);
        break;
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        this.#answerInfo(lookup, answer);
        break;
      default:
        this.#answerMetaContext(lookup, answer);
    }
  }

  #step(bytes: Uint8Array): number {
    if (this.#state === 'clientFlags') return this.#readClientFlags(bytes);
    if (this.#state !== 'options' || bytes.length === 0) return 0;
    if (this.#skipBytes > 0) {
      const skipped = Math.min(this.#skipBytes, bytes.length);
      this.#skipBytes -= skipped;
      return skipped;
    }
    return this.#readOption(bytes);
  }

  #readClientFlags(bytes: Uint8Array): number {
    if (bytes.length < 4) return 0;
    const flags = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
    // "Client flags": unknown ones end the session.
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) {
      this.#close(`unknown client flags 0x${flags.toString(16)}`);
    } else {
      this.#noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0;
      this.#state = 'options';
    }
    return 4;
  }

  #readOption(bytes: Uint8Array): number {
    if (bytes.length < OPTION_HEADER_SIZE_BYTES) return 0;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    if (view.getUint32(0) !== NBD_OPTS_MAGIC_HI || view.getUint32(4) !== NBD_OPTS_MAGIC_LO) {
      this.#close('an option without its magic');
      return OPTION_HEADER_SIZE_BYTES;
    }
    const option = view.getUint32(8);
    const length = view.getUint32(12);
    if (length > OPTION_SIZE_BYTES_MAX) {
      if (length > OPTION_SKIP_BYTES_MAX || option === NBD_OPT_EXPORT_NAME) {
        this.#close(`option ${option} with ${length} bytes of data`);
      } else {
        this.#reply(option, NBD_REP_ERR_TOO_BIG);
        this.#skipBytes = length;
      }
      return OPTION_HEADER_SIZE_BYTES;
    }
    const end = OPTION_HEADER_SIZE_BYTES + length;
    if (bytes.length < end) return 0;
    if (++this.#optionsSeen > OPTIONS_COUNT_MAX) this.#close('too many options');
    else this.#handleOption(option, bytes.subarray(OPTION_HEADER_SIZE_BYTES, end));
    return end;
  }

  #handleOption(option: number, data: Uint8Array): void {
    switch (option) {
      case NBD_OPT_EXPORT_NAME: {
        const name = decodeString(data);
        if (name === null) this.#close('an export name that is not UTF-8');
        else if (this.#replyMode === REPLY_EXTENDED)
          this.#close('NBD_OPT_EXPORT_NAME after extended headers');
        else this.#lookUp({ option, name, infos: [], queries: [] });
        break;
      }
      case NBD_OPT_ABORT:
        this.#reply(option, NBD_REP_ACK);
        this.#close('the client ended the negotiation');
        break;
      case NBD_OPT_LIST:
        this.#handleList(data);
        break;
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        this.#handleInfo(option, data);
        break;
      case NBD_OPT_STRUCTURED_REPLY:
        if (data.length > 0) this.#reply(option, NBD_REP_ERR_INVALID);
        else if (this.#replyMode === REPLY_EXTENDED) this.#reply(option, NBD_REP_ERR_EXT_HEADER_REQD);
        else {
          this.#replyMode = REPLY_STRUCTURED;
          this.#reply(option, NBD_REP_ACK);
        }
        break;
      case NBD_OPT_EXTENDED_HEADERS:
        if (!this.#options.extendedHeaders) this.#reply(option, NBD_REP_ERR_UNSUP);
        else if (data.length > 0) this.#reply(option, NBD_REP_ERR_INVALID);
        else {
          this.#replyMode = REPLY_EXTENDED;
          this.#reply(option, NBD_REP_ACK);
        }
        break;
      case NBD_OPT_LIST_META_CONTEXT:
      case NBD_OPT_SET_META_CONTEXT:
        this.#handleMetaContext(option, data);
        break;
      case NBD_OPT_STARTTLS:
        this.#reply(option, data.length > 0 ? NBD_REP_ERR_INVALID : NBD_REP_ERR_POLICY);
        break;
      default:
        this.#reply(option, NBD_REP_ERR_UNSUP);
    }
  }

  #handleList(data: Uint8Array): void {
    if (data.length > 0) {
      this.#reply(NBD_OPT_LIST, NBD_REP_ERR_INVALID);
      return;
    }
    for (const name of this.#options.listExports()) {
      this.#reply(NBD_OPT_LIST, NBD_REP_SERVER, new HandshakeOutput().countedString(name).take());
    }
    this.#reply(NBD_OPT_LIST, NBD_REP_ACK);
  }

  #handleInfo(option: number, data: Uint8Array): void {
    const reader = new OptionReader(data);
    const name = reader.countedString();
    const count = reader.uint16();
    if (name === null || count === null || reader.remaining !== count * 2) {
      this.#reply(option, NBD_REP_ERR_INVALID);
      return;
    }
    const infos: number[] = [];
    for (let i = 0; i < count; i++) infos.push(reader.uint16() ?? 0);
    this.#lookUp({ option, name, infos, queries: [] });
  }

  #handleMetaContext(option: number, data: Uint8Array): void {
    if (option === NBD_OPT_SET_META_CONTEXT) {
      // The earlier selection is gone, whatever becomes of this one ("Option types").
      this.#contextsOf = null;
      this.#contexts = [];
    }
    const reader = new OptionReader(data);
    const name = reader.countedString();
    const count = reader.uint32();
    if (name === null || count === null || this.#replyMode === REPLY_SIMPLE) {
      this.#reply(option, NBD_REP_ERR_INVALID);
      return;
    }
    if (count > QUERIES_COUNT_MAX) {
      this.#reply(option, NBD_REP_ERR_TOO_BIG);
      return;
    }
    const queries: string[] = [];
    for (let i = 0; i < count; i++) {
      const query = reader.countedString();
      if (query === null) {
        this.#reply(option, NBD_REP_ERR_INVALID);
        return;
      }
      queries.push(query);
    }
    if (reader.remaining > 0) this.#reply(option, NBD_REP_ERR_INVALID);
    else this.#lookUp({ option, name, infos: [], queries });
  }

  #lookUp(lookup: PendingLookup): void {
    this.#lookup = lookup;
    this.#state = 'waitingForExport';
  }

  #answerExportName(found: ExportDescription): void {
    this.#output.uint64(found.sizeBytes).uint16(this.#flagsOf(found));
    if (!this.#noZeroes) this.#output.zeroes(124);
    this.#enterTransmission(found);
  }

  #answerInfo(lookup: PendingLookup, found: ExportDescription): void {
    const info = (type: number): HandshakeOutput => new HandshakeOutput().uint16(type);
    const send = (data: HandshakeOutput): void => this.#reply(lookup.option, NBD_REP_INFO, data.take());
    send(info(NBD_INFO_EXPORT).uint64(found.sizeBytes).uint16(this.#flagsOf(found)));
    if (lookup.infos.includes(NBD_INFO_NAME)) send(info(NBD_INFO_NAME).string(found.name));
    if (found.description !== undefined && lookup.infos.includes(NBD_INFO_DESCRIPTION)) {
      send(info(NBD_INFO_DESCRIPTION).string(found.description));
    }
    if (lookup.infos.includes(NBD_INFO_BLOCK_SIZE)) {
      send(
        info(NBD_INFO_BLOCK_SIZE)
          .uint32(found.blockSizeMinBytes)
          .uint32(found.blockSizePreferredBytes)
          .uint32(found.payloadSizeMaxBytes),
      );
    }
    this.#reply(lookup.option, NBD_REP_ACK);
    if (lookup.option === NBD_OPT_GO) this.#enterTransmission(found);
  }

  #answerMetaContext(lookup: PendingLookup, found: ExportDescription): void {
    const { option, queries } = lookup;
    const setting = option === NBD_OPT_SET_META_CONTEXT;
    const names = new Set<string>();
    for (const name of found.metaContexts) {
      // A list without queries is everything; `base:` lists its namespace. A selection names contexts exactly.
      const listed = queries.length === 0 || queries.includes(`${name.split(':')[0]}:`);
      if (queries.includes(name) || (!setting && listed)) names.add(name);
    }
    for (const query of queries) if (found.acceptsContext?.(query) === true) names.add(query);
    const selected: MetaContext[] = [...names]
      .slice(0, CONTEXTS_SELECTED_MAX)
      .map((name, index) => ({ id: setting ? index + 1 : 0, name }));
    for (const { id, name } of selected) {
      this.#reply(option, NBD_REP_META_CONTEXT, new HandshakeOutput().uint32(id).string(name).take());
    }
    this.#reply(option, NBD_REP_ACK);
    if (setting) {
      this.#contextsOf = found.name;
      this.#contexts = selected;
    }
  }

  #flagsOf(found: ExportDescription): number {
    return found.transmissionFlags | (this.#replyMode === REPLY_SIMPLE ? 0 : NBD_FLAG_SEND_DF);
  }

  #enterTransmission(found: ExportDescription): void {
    this.#state = 'transmission';
    this.#outcome = {
      exportName: found.name,
      replyMode: this.#replyMode,
      metaContexts: this.#contextsOf === found.name ? this.#contexts : [],
    };
  }

  #reply(option: number, type: number, data: Uint8Array = new Uint8Array(0)): void {
    writeOptionReply(this.#output, option, type, data);
  }

  #close(reason: string): void {
    this.#state = 'closed';
    this.#closeReason = reason;
  }
}
