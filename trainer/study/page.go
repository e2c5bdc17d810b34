package study

import "io"

func writePage(w io.Writer, r Report) error { return nil }
