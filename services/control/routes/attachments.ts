/** /v1/attachments: attach, list, get, detach. */
import { Type } from 'typebox';
import {
  type AttachmentRecord,
  attachments as attachmentTable,
  DEFAULT_DEVICE_OPTIONS,
} from '../domain/records.ts';
import type { ControlParts, RestApp } from './app.ts';
import { answerOnce } from './idempotent.ts';
import {
  AttachmentView,
  CreateAttachmentBody,
  DeleteAttachmentQuery,
  ErrorBody,
  IdParams,
} from './schemas.ts';
import { attachmentView } from './views.ts';

export function attachmentRoutes(app: RestApp, parts: ControlParts): void {
  const { context, attachments, idempotency } = parts;
  const tags = ['attachments'];
  const view = (record: AttachmentRecord): AttachmentView => attachmentView(record, attachments.ioOf(record));

  app.post(
    '/v1/attachments',
    {
      schema: {
        tags,
        summary: 'Attach a volume at an agent; the device exists when this answers',
        body: CreateAttachmentBody,
        response: { 201: AttachmentView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    (request, reply) => {
      const { volume: volumeId, agent: agentId, datapath = 'auto', force = false, ...asked } = request.body;
      const options = { ...DEFAULT_DEVICE_OPTIONS, ...asked };
      return answerOnce(
        { idempotency, newId: context.newId },
        { request, reply },
        {
          idPrefix: 'att',
          run: async (id) =>
            view(await attachments.attach({ id, volumeId, agentId, datapath, options, force })),
          find: async (id) => {
            const found = await attachmentTable.get(context.store, id);
            return found === null ? null : view(found.value);
          },
        },
      );
    },
  );

  app.get(
    '/v1/attachments',
    {
      schema: {
        tags,
        summary: 'All attachments',
        response: { 200: Type.Array(AttachmentView), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async () => (await attachments.list()).map(view),
  );

  app.get(
    '/v1/attachments/:id',
    {
      schema: {
        tags,
        summary: 'One attachment',
        params: IdParams,
        response: { 200: AttachmentView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => view(await attachments.get(request.params.id)),
  );

  app.delete(
    '/v1/attachments/:id',
    {
      schema: {
        tags,
        summary: 'Detach; with force it always ends',
        params: IdParams,
        querystring: DeleteAttachmentQuery,
        response: { 204: Type.Null(), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request, reply) => {
      await attachments.detach(request.params.id, { force: request.query.force ?? false });
      return reply.code(204).send(null);
    },
  );
}
