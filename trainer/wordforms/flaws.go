package wordforms

import "strings"

// flaws returns wrong forms for a task: by the plain rule where another holds, or by another rule where the plain one
// holds. A result may be a word of its own: the caller has to look.
func flaws(w Word, t Task) []string {
	gold, class := w.Form(t)
	word, stem, last, ending := w.Text, w.Text[:len(w.Text)-1], w.Text[len(w.Text)-1:], t.ending()
	kept := word + ending // as if nothing had to change: carryed, bakeed, stoped
	if t == Plural && !isSibilant(word) {
		kept = word + "s"
	}
	switch class {
	case Irregular:
		return []string{derive(word, t, false).form, derive(gold, t, false).form} // goed, wented
	case Sibilant:
		return []string{word + "s", word + "ies"}
	case VES:
		return []string{kept, strings.TrimSuffix(word, "e") + "es"}
	case OES:
		return []string{kept, stem + "ies"}
	case VowelY:
		return []string{stem + "i" + ending, word + last + ending}
	case ConsY:
		return []string{kept, stem + ending}
	case Doubled:
		return []string{kept, word + "i" + ending}
	}
	if t == Plural {
		return []string{word + "es", strings.TrimSuffix(word, "e") + "ies"}
	}
	return flawsOfPlain(word, ending)
}

// flawsOfPlain are wrong forms of words that only take the ending.
func flawsOfPlain(word, ending string) []string {
	stem, ended := strings.CutSuffix(word, "e")
	if ended {
		word = stem
	}
	wrong := []string{word + "i" + ending}
	if n := len(word); n > 1 && !strings.ContainsRune("aeiouwxyh", rune(word[n-1])) && word[n-1] != word[n-2] {
		wrong = append(wrong, word+word[n-1:]+ending) // the last letter doubled
	}
	if ended {
		wrong = append(wrong, word+"e"+ending) // bakeed
	}
	return wrong
}
