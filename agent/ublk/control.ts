/**
 * ublk control commands as promises: add, start, recover, resize, stop and delete devices (drivers/block/ublk_drv.c,
 * ublk_ctrl_*).
 */
import { existsSync, readdirSync } from 'node:fs';
import { errnoName } from '@blockwire/native/errors.ts';
import { native } from '@blockwire/native/native.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import {
  type DeviceInfo,
  type DeviceParams,
  type DeviceRequest,
  decodeDeviceInfo,
  decodeParams,
  emptyDeviceInfo,
  emptyParams,
  encodeControlCommand,
  encodeDeviceInfo,
  encodeParams,
  SECTOR_BYTES,
  UblkCtrl,
} from './uapi.ts';

const EBUSY = 16;
const ENODEV = 19;

type Command = keyof typeof UblkCtrl;

async function command(
  name: Command,
  deviceId: number,
  data: Uint8Array | null,
  inlineData = 0,
): Promise<void> {
  const result = await native.ublkControl(UblkCtrl[name], encodeControlCommand(deviceId, inlineData), data);
  if (result >= 0) return;
  if (result === -EBUSY)
    throw new BlockwireError('BW_DEVICE_BUSY', `ublk device ${deviceId} is open or in use`);
  const where = deviceId < 0 ? '' : ` of device ${deviceId}`;
  throw new BlockwireError('BW_KERNEL', `ublk ${name}${where} failed: ${errnoName(-result)}`);
}

/** Whether this kernel has ublk loaded. */
export function ublkPresent(): boolean {
  return existsSync('/dev/ublk-control');
}

/** The low 32 bits of the UBLK_F_* that this kernel offers. Throws BW_UNSUPPORTED_HOST without ublk. */
export async function ublkFeatures(): Promise<number> {
  if (!ublkPresent()) {
    throw new BlockwireError(
      'BW_UNSUPPORTED_HOST',
      'this kernel has no ublk: load the module ublk_drv (Linux 6.0 or newer), or run the agent on another host',
    );
  }
  const features = new Uint8Array(8);
  await command('GET_FEATURES', -1, features);
  return new DataView(features.buffer).getUint32(0, true);
}

/** Adds a device; the kernel may lower what was asked, so use what is returned. */
export async function addDevice(info: DeviceRequest): Promise<DeviceInfo> {
  const data = encodeDeviceInfo(info);
  await command('ADD_DEV', info.id, data);
  return decodeDeviceInfo(data);
}

export function setParams(deviceId: number, params: DeviceParams): Promise<void> {
  return command('SET_PARAMS', deviceId, encodeParams(params));
}

/** Makes /dev/ublkbN appear. Returns after the partition scan, which the queues must already serve. */
export function startDevice(deviceId: number): Promise<void> {
  return command('START_DEV', deviceId, null, process.pid);
}

/** The parameters in force. */
export async function getParams(deviceId: number): Promise<DeviceParams> {
  const data = emptyParams();
  await command('GET_PARAMS', deviceId, data);
  return decodeParams(data);
}

/**
 * Whether a new server may open the device: throws BW_DEVICE_BUSY while the old one still has /dev/ublkcN open, or an
 * operation of its ring in flight. Changes nothing on Linux 7.3; older kernels forget the old server with it.
 */
export function startRecovery(deviceId: number): Promise<void> {
  return command('START_USER_RECOVERY', deviceId, null);
}

/** The device lives again; requests that the old server had not completed are given out again. */
export function endRecovery(deviceId: number): Promise<void> {
  return command('END_USER_RECOVERY', deviceId, null, process.pid);
}

/**
 * Holds back new requests and gives every idle tag back to its server. Throws BW_DEVICE_BUSY when a queue has no idle
 * tag within the time; new requests are held back also then.
 */
export function quiesceDevice(deviceId: number, timeoutMs: number): Promise<void> {
  return command('QUIESCE_DEV', deviceId, null, timeoutMs);
}

export function updateSize(deviceId: number, sizeBytes: number): Promise<void> {
  return command('UPDATE_SIZE', deviceId, null, sizeBytes / SECTOR_BYTES);
}

/** Every ublk device of this host, whoever made it, by number. */
export async function listDevices(): Promise<DeviceInfo[]> {
  if (!ublkPresent()) return [];
  const ids = readdirSync('/dev').flatMap((name) => /^ublkc(\d+)$/.exec(name)?.[1] ?? []);
  const numbers = ids.map(Number).sort((a, b) => a - b);
  const infos = await Promise.all(numbers.map((id) => deviceInfo(id)));
  return infos.filter((info) => info !== null);
}

/** Removes /dev/ublkbN; waits for its I/O, which the queues must go on serving. A device already gone is no error. */
export async function stopDevice(deviceId: number): Promise<void> {
  await ignoringAbsence(command('STOP_DEV', deviceId, null));
}

/** As stopDevice, but throws BW_DEVICE_BUSY while the device is open. */
export async function tryStopDevice(deviceId: number): Promise<void> {
  await ignoringAbsence(command('TRY_STOP_DEV', deviceId, null));
}

/** Deletes the device; waits until /dev/ublkcN is closed. A device already gone is no error. */
export async function deleteDevice(deviceId: number): Promise<void> {
  await ignoringAbsence(command('DEL_DEV', deviceId, null));
}

/** What the kernel says of a device, or null if there is none. */
export async function deviceInfo(deviceId: number): Promise<DeviceInfo | null> {
  const data = emptyDeviceInfo();
  const result = await native.ublkControl(UblkCtrl.GET_DEV_INFO, encodeControlCommand(deviceId, 0), data);
  if (result === -ENODEV || result === -22) return null;
  if (result < 0) throw new BlockwireError('BW_KERNEL', `ublk GET_DEV_INFO failed: ${errnoName(-result)}`);
  return decodeDeviceInfo(data);
}

async function ignoringAbsence(outcome: Promise<void>): Promise<void> {
  try {
    await outcome;
  } catch (error) {
    if (error instanceof BlockwireError && error.message.endsWith(': ENODEV')) return;
    throw error;
  }
}
