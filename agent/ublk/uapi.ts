/** Numbers and structs of include/uapi/linux/ublk_cmd.h (Linux 7.3), as far as Blockwire uses them. */

const IOC_WRITE = 1;
const IOC_READ = 2;
const CTRL_CMD_BYTES = 32;
const IO_CMD_BYTES = 16;

/** include/uapi/asm-generic/ioctl.h: direction 2 bits | size 14 | type 8 | number 8. */
function ioc(direction: number, number: number, sizeBytes: number): number {
  return ((direction << 30) | (sizeBytes << 16) | ('u'.charCodeAt(0) << 8) | number) >>> 0;
}

/** Control commands, on /dev/ublk-control. */
export const UblkCtrl = {
  GET_DEV_INFO: ioc(IOC_READ, 0x02, CTRL_CMD_BYTES),
  ADD_DEV: ioc(IOC_READ | IOC_WRITE, 0x04, CTRL_CMD_BYTES),
  DEL_DEV: ioc(IOC_READ | IOC_WRITE, 0x05, CTRL_CMD_BYTES),
  START_DEV: ioc(IOC_READ | IOC_WRITE, 0x06, CTRL_CMD_BYTES),
  STOP_DEV: ioc(IOC_READ | IOC_WRITE, 0x07, CTRL_CMD_BYTES),
  SET_PARAMS: ioc(IOC_READ | IOC_WRITE, 0x08, CTRL_CMD_BYTES),
  GET_PARAMS: ioc(IOC_READ, 0x09, CTRL_CMD_BYTES),
  START_USER_RECOVERY: ioc(IOC_READ | IOC_WRITE, 0x10, CTRL_CMD_BYTES),
  END_USER_RECOVERY: ioc(IOC_READ | IOC_WRITE, 0x11, CTRL_CMD_BYTES),
  GET_FEATURES: ioc(IOC_READ, 0x13, CTRL_CMD_BYTES),
  UPDATE_SIZE: ioc(IOC_READ | IOC_WRITE, 0x15, CTRL_CMD_BYTES),
  QUIESCE_DEV: ioc(IOC_READ | IOC_WRITE, 0x16, CTRL_CMD_BYTES),
  TRY_STOP_DEV: ioc(IOC_READ | IOC_WRITE, 0x17, CTRL_CMD_BYTES),
} as const;

/** I/O commands, on /dev/ublkcN. */
export const UblkIoCommand = {
  FETCH_REQ: ioc(IOC_READ | IOC_WRITE, 0x20, IO_CMD_BYTES),
  COMMIT_AND_FETCH_REQ: ioc(IOC_READ | IOC_WRITE, 0x21, IO_CMD_BYTES),
  REGISTER_IO_BUF: ioc(IOC_READ | IOC_WRITE, 0x23, IO_CMD_BYTES),
  UNREGISTER_IO_BUF: ioc(IOC_READ | IOC_WRITE, 0x24, IO_CMD_BYTES),
} as const;

/** Feature bits (UBLK_F_*). */
export const UblkFeature = {
  SUPPORT_ZERO_COPY: 1 << 0,
  USER_RECOVERY: 1 << 3,
  USER_RECOVERY_REISSUE: 1 << 4,
  CMD_IOCTL_ENCODE: 1 << 6,
  USER_COPY: 1 << 7,
  UPDATE_SIZE: 1 << 10,
  AUTO_BUF_REG: 1 << 11,
  QUIESCE: 1 << 12,
  SAFE_STOP_DEV: 1 << 17,
} as const;

/** Operations of a request (low byte of op_flags). */
export const UblkIoOp = { READ: 0, WRITE: 1, FLUSH: 2, DISCARD: 3, WRITE_ZEROES: 5 } as const;

/** Flags of a request, in op_flags. */
export const UblkIoFlag = { FUA: 1 << 13, NOUNMAP: 1 << 15 } as const;

/** A fetched tag ended with this because the device stops. */
export const UBLK_IO_RES_ABORT = -19;

/** struct ublksrv_io_desc: op_flags, nr_sectors, start_sector (2 words), addr (2 words). */
export const IO_DESC_WORDS = 6;
export const UBLK_MAX_QUEUE_DEPTH = 4096;

/** Where the descriptors of a queue are, as an mmap offset of /dev/ublkcN. */
export function ioDescOffset(queueId: number): number {
  return queueId * UBLK_MAX_QUEUE_DEPTH * IO_DESC_WORDS * 4;
}

export const SECTOR_SHIFT = 9;
export const SECTOR_BYTES = 1 << SECTOR_SHIFT;

/** State of a device (UBLK_S_DEV_*). */
export const UblkState = { DEAD: 0, LIVE: 1, QUIESCED: 2, FAIL_IO: 3 } as const;

const ATTR_READ_ONLY = 1 << 0;
const ATTR_VOLATILE_CACHE = 1 << 2;
const ATTR_FUA = 1 << 3;
const PARAM_TYPE_BASIC = 1 << 0;
const PARAM_TYPE_DISCARD = 1 << 1;
const PARAMS_BYTES = 152;

export interface DeviceInfo {
  readonly id: number;
  readonly queueCount: number;
  readonly queueDepth: number;
  readonly ioSizeBytesMax: number;
  /** Low 32 bits of the UBLK_F_* in force. */
  readonly features: number;
  /** UblkState */
  readonly state: number;
  /** The process that serves the device, or served it last; -1 before there was one. */
  readonly serverPid: number;
  /** Three 64-bit words that the driver keeps for its servers: ublksrv_flags, reserved1, reserved2. */
  readonly marks: readonly [bigint, bigint, bigint];
}

/** What ADD_DEV is asked for. */
export type DeviceRequest = Omit<DeviceInfo, 'state' | 'serverPid'>;

const DEV_INFO_BYTES = 64;
const MARKS_AT = [32, 48, 56] as const;

/** struct ublksrv_ctrl_dev_info for ADD_DEV; id -1 takes any free one. */
export function encodeDeviceInfo(info: DeviceRequest): Uint8Array {
  const bytes = new Uint8Array(DEV_INFO_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, info.queueCount, true);
  view.setUint16(2, info.queueDepth, true);
  view.setUint32(8, info.ioSizeBytesMax, true);
  view.setInt32(12, info.id, true);
  view.setInt32(16, -1, true);
  view.setUint32(24, info.features >>> 0, true);
  for (const [index, at] of MARKS_AT.entries()) view.setBigUint64(at, info.marks[index]!, true);
  return bytes;
}

export function decodeDeviceInfo(bytes: Uint8Array): DeviceInfo {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return {
    queueCount: view.getUint16(0, true),
    queueDepth: view.getUint16(2, true),
    state: view.getUint16(4, true),
    ioSizeBytesMax: view.getUint32(8, true),
    id: view.getInt32(12, true),
    serverPid: view.getInt32(16, true),
    features: view.getUint32(24, true),
    marks: [view.getBigUint64(32, true), view.getBigUint64(48, true), view.getBigUint64(56, true)],
  };
}

export function emptyDeviceInfo(): Uint8Array {
  return new Uint8Array(DEV_INFO_BYTES);
}

export interface DeviceParams {
  readonly sizeBytes: number;
  /** Logical block: 512 or 4096. */
  readonly blockSizeBytes: number;
  readonly ioSizeBytesMax: number;
  /** Discards reach whole units of this only. */
  readonly discardGranularityBytes: number;
  readonly readOnly: boolean;
}

/** The longest discard or write-zeroes of one request: no payload, so far above the size of an I/O. */
const DISCARD_BYTES_MAX = 1 << 30;

/** struct ublk_params with the basic and the discard part. */
export function encodeParams(params: DeviceParams): Uint8Array {
  const bytes = new Uint8Array(PARAMS_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, PARAMS_BYTES, true);
  view.setUint32(4, PARAM_TYPE_BASIC | PARAM_TYPE_DISCARD, true);
  const attributes = ATTR_VOLATILE_CACHE | ATTR_FUA | (params.readOnly ? ATTR_READ_ONLY : 0);
  view.setUint32(8, attributes, true);
  view.setUint8(12, Math.log2(params.blockSizeBytes));
  view.setUint8(13, 12); // physical block: 4096
  view.setUint8(14, 12); // optimal I/O
  view.setUint8(15, 12); // minimum I/O
  view.setUint32(16, params.ioSizeBytesMax >>> SECTOR_SHIFT, true);
  view.setBigUint64(24, BigInt(params.sizeBytes / SECTOR_BYTES), true);
  view.setUint32(44, params.discardGranularityBytes, true);
  view.setUint32(48, DISCARD_BYTES_MAX >>> SECTOR_SHIFT, true);
  view.setUint32(52, DISCARD_BYTES_MAX >>> SECTOR_SHIFT, true);
  view.setUint16(56, 1, true);
  return bytes;
}

/** For GET_PARAMS: the kernel fills as much as `len` says. */
export function emptyParams(): Uint8Array {
  const bytes = new Uint8Array(PARAMS_BYTES);
  new DataView(bytes.buffer).setUint32(0, PARAMS_BYTES, true);
  return bytes;
}

export function decodeParams(bytes: Uint8Array): DeviceParams {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return {
    sizeBytes: Number(view.getBigUint64(24, true)) * SECTOR_BYTES,
    blockSizeBytes: 2 ** view.getUint8(12),
    ioSizeBytesMax: view.getUint32(16, true) << SECTOR_SHIFT,
    discardGranularityBytes: view.getUint32(44, true),
    readOnly: (view.getUint32(8, true) & ATTR_READ_ONLY) !== 0,
  };
}

/** struct ublksrv_ctrl_cmd; address and length of the data are filled by the native side. */
export function encodeControlCommand(deviceId: number, inlineData: number): Uint8Array {
  const bytes = new Uint8Array(CTRL_CMD_BYTES);
  const view = new DataView(bytes.buffer);
  view.setInt32(0, deviceId, true);
  view.setUint16(4, 0xffff, true);
  view.setBigInt64(16, BigInt(inlineData), true);
  return bytes;
}
