/** State changes as they happen, for whoever listens in this process. */
import { EventEmitter } from 'node:events';

export type ControlEvent =
  | { readonly type: 'volume.created' | 'volume.available' | 'volume.deleted'; readonly volumeId: string }
  | {
      readonly type: 'volume.attached' | 'volume.detached';
      readonly volumeId: string;
      readonly agentId: string;
    }
  | { readonly type: 'volume.resized'; readonly volumeId: string; readonly sizeBytes: number }
  | { readonly type: 'volume.scrubbing'; readonly volumeId: string }
  | {
      readonly type: 'volume.scrubbed';
      readonly volumeId: string;
      readonly mismatchedRegions: number;
      readonly repairedRegions: number;
    }
  | {
      readonly type: 'replica.damaged' | 'replica.repaired';
      readonly volumeId: string;
      readonly nodeId: string;
      readonly regions: number;
    }
  | {
      readonly type: 'snapshot.created' | 'snapshot.deleted';
      readonly volumeId: string;
      readonly snapshot: string;
    }
  | {
      readonly type: 'attachment.lost' | 'attachment.taken';
      readonly volumeId: string;
      readonly agentId: string;
    }
  | {
      readonly type: 'replica.stale';
      readonly volumeId: string;
      readonly nodeId: string;
      readonly epoch: number;
      readonly reason: string;
    }
  | {
      readonly type: 'replica.inSync' | 'replica.rebuilding' | 'replica.promoted';
      readonly volumeId: string;
      readonly nodeId: string;
      readonly epoch: number;
    }
  | {
      readonly type: 'replica.deleted' | 'replica.removed';
      readonly volumeId: string;
      readonly nodeId: string;
    }
  | {
      readonly type: 'replica.replacing';
      readonly volumeId: string;
      readonly nodeId: string;
      readonly replacedNodeId: string;
    }
  | { readonly type: 'node.online' | 'node.offline' | 'node.draining' | 'node.kept'; readonly nodeId: string }
  | { readonly type: 'agent.online' | 'agent.offline'; readonly agentId: string };

/** Emits `change` after the commit that made it true. */
export class ControlEvents extends EventEmitter<{ change: [ControlEvent] }> {
  publish(event: ControlEvent): void {
    this.emit('change', event);
  }
}
