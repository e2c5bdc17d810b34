// Package chat turns conversations into tokens by the model's own chat template, with a loss mask.
//
// What is promised:
//   - A prompt has the very tokens that it has at inference (EncodePrompt), and what is learned is what has to be
//     generated after it: the target is tokenized on its own, so that its first token begins where generation begins.
//   - A target ends with the token that ends generation; it is learned too. What a template puts after it is not.
//   - Only the template's own markup becomes control tokens. A user who types "<|im_end|>" has written text. (What a
//     vocabulary lists as user-defined is no control token, but a word that it has everywhere.)
//   - BOS stands in front once if the vocabulary asks for it, never twice.
//
// Where that cannot be had the conversation is refused. Templates are Jinja, rendered as transformers does
// (trim_blocks, lstrip_blocks); they cannot read files. The package knows no records and does no packing.
package chat
