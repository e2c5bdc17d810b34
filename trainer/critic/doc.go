// Package critic asks models for texts about records, many of them and for money: candidate answers to questions, and
// teachers' critiques of answers.
//
// Run works through the requests that a Plan describes. Each request is known by its number, which is a function of row,
// teacher and repetition; what happens to it is kept in a journal that is only appended to and synced: the intent before a
// request leaves, the answer when it has arrived. A process may be killed at any moment. The next one asks only for what
// the journal has no answer to, and knows which requests were on their way when the last one died: these may have been
// paid, are counted so, and are sent again under the same idempotency key.
//
// A budget holds for the worst case: no request leaves unless all that are in flight could cost what they may at most.
// Texts stay on disk; memory is some bytes per request. The package knows nothing of models: a Backend answers.
package critic
