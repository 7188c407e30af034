/** /v1/volumes: create, list, get, resize, delete. */
import { Type } from 'typebox';
import { promote } from '../domain/promotion.ts';
import { nodes, volumes as volumeTable } from '../domain/records.ts';
import type { ControlParts, RestApp } from './app.ts';
import { answerOnce } from './idempotent.ts';
import {
  CreateVolumeBody,
  ErrorBody,
  IdParams,
  ListVolumesQuery,
  PromoteBody,
  ReplicaParams,
  ResizeVolumeBody,
  VolumeView,
} from './schemas.ts';
import { type ViewSources, volumeView } from './views.ts';

export function volumeRoutes(app: RestApp, parts: ControlParts): void {
  const { context, volumes, rebuilder, idempotency } = parts;
  const tags = ['volumes'];

  const sources = async (): Promise<ViewSources> => ({
    addresses: new Map((await nodes.list(context.store)).map(({ value }) => [value.id, value.nbdAddress])),
    exportNames: context.exportNames,
    rebuilder,
  });

  app.post(
    '/v1/volumes',
    {
      schema: {
        tags,
        summary: 'Create a volume; its replicas exist when this answers',
        body: CreateVolumeBody,
        response: { 201: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    (request, reply) => {
      const { name, sizeBytes, replicas } = request.body;
      return answerOnce(
        { idempotency, newId: context.newId },
        { request, reply },
        {
          idPrefix: 'vol',
          run: async (id) => {
            const volume = await volumes.create({ id, name, sizeBytes, replicaCount: replicas });
            return volumeView(volume, await sources());
          },
          find: async (id) => {
            const found = await volumeTable.get(context.store, id);
            if (found === null) return null;
            return volumeView(found.value, await sources());
          },
        },
      );
    },
  );

  app.get(
    '/v1/volumes',
    {
      schema: {
        tags,
        summary: 'All volumes, or the one of a name',
        querystring: ListVolumesQuery,
        response: { 200: Type.Array(VolumeView), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => {
      const found = await sources();
      return (await volumes.list(request.query)).map((volume) => volumeView(volume, found));
    },
  );

  app.get(
    '/v1/volumes/:id',
    {
      schema: {
        tags,
        summary: 'One volume',
        params: IdParams,
        response: { 200: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => volumeView(await volumes.get(request.params.id), await sources()),
  );

  app.patch(
    '/v1/volumes/:id',
    {
      schema: {
        tags,
        summary: 'Make a volume larger; where it is attached, the device has the new size when this answers',
        params: IdParams,
        body: ResizeVolumeBody,
        response: { 200: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) =>
      volumeView(await volumes.resize(request.params.id, request.body.sizeBytes), await sources()),
  );

  app.post(
    '/v1/volumes/:id/replicas/:node/promote',
    {
      schema: {
        tags,
        summary: 'Let a stale replica count when no replica in sync is left, and give up what it lacks',
        params: ReplicaParams,
        body: PromoteBody,
        response: { 200: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => {
      const { id: volumeId, node: nodeId } = request.params;
      return volumeView(await promote(context, { volumeId, nodeId }), await sources());
    },
  );

  app.delete(
    '/v1/volumes/:id',
    {
      schema: {
        tags,
        summary: 'Delete a volume; a replica whose node is offline goes when the node is back',
        params: IdParams,
        response: { 204: Type.Null(), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request, reply) => {
      await volumes.delete(request.params.id);
      return reply.code(204).send(null);
    },
  );
}
