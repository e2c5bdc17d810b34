// Package verify looks at critiques before a model learns from them: what they conclude, whether that is true as far as
// gold labels tell, and whether they are whole, new, and apart from the test sets.
//
// Each row may fail several checks, each check has a policy, and every row that does not pass unchanged is counted and
// named in the report. The texts of critiques are never altered. Rows are read twice, and only what was found about
// them is kept in memory.
package verify
