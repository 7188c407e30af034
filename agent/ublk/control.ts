/** ublk control commands as promises: add, start, stop and delete devices (drivers/block/ublk_drv.c, ublk_ctrl_*). */
import { existsSync } from 'node:fs';
import { errnoName } from '@blockwire/native/errors.ts';
import { native } from '@blockwire/native/native.ts';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import {
  type DeviceInfo,
  type DeviceParams,
  decodeDeviceInfo,
  emptyDeviceInfo,
  encodeControlCommand,
  encodeDeviceInfo,
  encodeParams,
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
export async function addDevice(info: Omit<DeviceInfo, 'state' | 'serverPid'>): Promise<DeviceInfo> {
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
