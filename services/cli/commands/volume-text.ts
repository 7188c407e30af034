/** Volumes and attachments as people read them. */
import type { Attachment, Replica, Volume } from '../rest/schema.ts';
import { formatSize } from '../size.ts';
import { type Column, formatProperties } from '../table.ts';

export const volumeColumns: readonly Column<Volume>[] = [
  { header: 'NAME', value: ({ name }) => name },
  { header: 'ID', value: ({ id }) => id },
  { header: 'SIZE', value: ({ sizeBytes }) => formatSize(sizeBytes), align: 'right' },
  { header: 'STATE', value: stateText },
  { header: 'REPLICAS', value: replicasText },
];

function stateText(volume: Volume): string {
  return volume.degraded === true ? `${volume.state} (degraded)` : volume.state;
}

function replicasText({ replicas }: Volume): string {
  return replicas.map(({ node, state }) => (state === 'inSync' ? node : `${node} (${state})`)).join(', ');
}

export function volumeText(volume: Volume, attachments: readonly Attachment[]): string {
  const properties: [string, string][] = [
    ['id', volume.id],
    ['name', volume.name],
    ['size', formatSize(volume.sizeBytes)],
    ['state', stateText(volume)],
  ];
  for (const replica of volume.replicas) properties.push(['replica', replicaText(replica)]);
  for (const { agent, device, datapath, state, io } of attachments) {
    const trouble = io === undefined || io === 'ok' || io === 'unknown' ? '' : `I/O ${io}`;
    properties.push(['attached', [agent, device, datapath, state, trouble].filter(Boolean).join(' ')]);
  }
  if (volume.scrub) properties.push(['scrubbed', scrubText(volume.scrub)]);
  return formatProperties(properties);
}

function scrubText({ startedAt, finishedAt, replicas }: NonNullable<Volume['scrub']>): string {
  if (finishedAt === null) return `since ${startedAt}`;
  const failed = replicas.flatMap(({ node, error }) => (error === null ? [] : [`${node}: ${error}`]));
  const mismatched = replicas.reduce((sum, replica) => sum + replica.mismatchedRegions, 0);
  const repaired = replicas.reduce((sum, replica) => sum + replica.repairedRegions, 0);
  const found = mismatched === 0 ? 'nothing amiss' : `${mismatched} regions amiss, ${repaired} repaired`;
  return `${finishedAt} ${found}${failed.length === 0 ? '' : `; not all compared: ${failed.join('; ')}`}`;
}

function replicaText({ node, state, uri, rebuild, replaces }: Replica): string {
  const progress = rebuild ? ` ${progressText(rebuild)}` : '';
  const place = replaces ? ` (instead of ${replaces})` : '';
  return `${node} ${state}${progress}${place} ${uri}`;
}

function progressText({ copiedBytes, totalBytes }: NonNullable<Replica['rebuild']>): string {
  const percent = totalBytes === 0 ? 0 : Math.floor((Math.min(copiedBytes, totalBytes) / totalBytes) * 100);
  return `${percent}% (${formatSize(copiedBytes)} of ${formatSize(totalBytes)})`;
}

export function attachmentProperties(attachment: Attachment): [string, string][] {
  return [
    ['id', attachment.id],
    ['volume', attachment.volume],
    ['agent', attachment.agent],
    ['device', attachment.device ?? ''],
    ['datapath', attachment.datapath ?? ''],
    ['state', attachment.state],
    ['I/O', attachment.io ?? 'unknown'],
  ];
}
