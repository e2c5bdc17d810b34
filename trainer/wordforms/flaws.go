package wordforms

import "strings"

// flaws returns wrong forms for a task, by rules that are over-regular or belong to other words; the most tempting first.
// A result may happen to be right, or a word of its own: the caller has to look.
func flaws(w Word, t Task) []string {
	gold, class := w.Form(t)
	word := w.Text
	regular := derive(word, t, false).form
	doubled := derive(word, t, true).form
	switch t {
	case ThirdPerson, Plural:
		return flawsOfS(word, gold, class, regular)
	case Participle:
		return flawsBefore(word, "ing", class, regular, doubled, gold)
	case Comparative:
		return flawsBefore(word, "er", class, regular, doubled, gold)
	case Superlative:
		return flawsBefore(word, "est", class, regular, doubled, gold)
	}
	return flawsBefore(word, "ed", class, regular, doubled, gold)
}

// flawsBefore are wrong forms with an ending that begins with a vowel.
func flawsBefore(word, ending string, class Class, regular, doubled, gold string) []string {
	stem := word[:len(word)-1]
	last := word[len(word)-1:]
	kept := word + ending // as if nothing changed: carryed, bakeed, stoped
	switch class {
	case Irregular:
		return []string{regular, gold + ending} // goed, wented
	case Doubled:
		return []string{kept, stem + ending}
	case ConsY:
		return []string{kept, stem + ending}
	case VowelY:
		return []string{stem + "i" + ending, word + last + ending}
	case DropE:
		if stemLast := stem[len(stem)-1:]; !isVowel(stemLast[0]) && stemLast != "w" && stemLast != "y" {
			return []string{kept, stem + stemLast + ending}
		}
		return []string{kept, stem + "i" + ending}
	case IEToY:
		return []string{kept, stem + ending}
	}
	if last == "y" { // carrying: y stays
		return []string{stem + "i" + ending, stem + ending}
	}
	if isVowel(last[0]) {
		return []string{stem + ending, word + "y" + ending}
	}
	return []string{doubled, word + "i" + ending}
}

// flawsOfS are wrong plurals and third persons.
func flawsOfS(word, gold string, class Class, regular string) []string {
	stem := word[:len(word)-1]
	switch class {
	case Irregular:
		return []string{regular, gold + "s"} // mouses, mices
	case Sibilant:
		return []string{word + "s", word + "ies"}
	case ConsY:
		return []string{word + "s", stem + "es"}
	case VowelY:
		return []string{stem + "ies", word + "es"}
	case OES:
		return []string{word + "s", stem + "ies"}
	case VES:
		return []string{strings.TrimSuffix(word, "e") + "s", strings.TrimSuffix(word, "e") + "es"}
	}
	if strings.HasSuffix(word, "e") {
		return []string{word + "es", stem + "ies"}
	}
	return []string{word + "es", word + "ies"}
}
