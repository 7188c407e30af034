/** A process that runs batches of seeds for another one, and ends with it. */
import { type Batch, runBatch } from './batches.ts';

Error.stackTraceLimit = 0;
process.on('message', (batch: Batch) => void runBatch(batch).then((result) => process.send!(result)));
