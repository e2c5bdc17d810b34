// Package jinja renders Jinja2 templates as transformers does: ImmutableSandboxedEnvironment with trim_blocks,
// lstrip_blocks, loop controls, its own tojson and the generation tag.
//
// It renders exactly or not at all. What Jinja2 has and this package has not (inheritance, includes, imports, and what
// no chat template was found to use) is an error that names it, as is whatever Jinja2 or Python refuses: a name that is
// undefined in a sum, None in a loop, a private attribute, a list that is changed.
//
// A template comes with a model's file and may be hostile: how deep it nests, how long it runs and how much it writes are
// bounded.
//
// Source: Jinja's template designer documentation and its grammar as of 3.1; Python 3.11's methods of str and dict.
package jinja
