package source

import (
	"errors"
	"fmt"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"
)

// node is a value of the schema, which becomes a JSON value. Parquet keeps nested values as columns of leaves, each with
// two levels: the repetition level says which of the lists around it goes on with the value, the definition level how
// many of the optional and repeated values around it are there (S. Melnik et al., Dremel, section 4).
type node struct {
	path     string // for messages
	kind     kind
	nullable bool
	defined  int // the definition level from which it is there
	// repeats and filled are the levels of a list or map: of what goes on with it, and of what is not empty.
	repeats, filled int
	first, columns  int      // its leaves
	names           []string // of an object's members, as appended: with comma or brace, and colon
	children        []*node  // of an object; the element of a list; the key and value of a map
	encode          encoder  // of a leaf
}

type kind int

const (
	leaf kind = iota
	object
	list
	dict
)

// newTree makes a node of the file's schema; columns is the number of leaves.
func newTree(file *parquet.File) (root *node, columns int, err error) {
	defer recoverDamage(&err)
	t := &treeMaker{elements: file.Metadata().Schema}
	if root, err = t.make(file.Root()); err != nil {
		return nil, 0, err
	}
	return root, t.columns, nil
}

// treeMaker walks columns and schema elements together; both are in depth-first order.
type treeMaker struct {
	elements []format.SchemaElement
	columns  int
}

// make makes a column's node. A column that repeats and is not the inside of a list or map is a list of itself.
func (t *treeMaker) make(c *parquet.Column) (*node, error) {
	if !c.Repeated() {
		return t.makeOne(c)
	}
	first := t.columns
	element, err := t.makeOne(c)
	if err != nil {
		return nil, err
	}
	return listOf(element, c, first), nil
}

// listOf is a list whose column c repeats with every element.
func listOf(element *node, c *parquet.Column, first int) *node {
	return &node{path: element.path, kind: list, repeats: c.MaxRepetitionLevel(), filled: c.MaxDefinitionLevel(),
		first: first, columns: element.columns, children: []*node{element}}
}

// makeOne makes a column's node, whether it repeats or not.
func (t *treeMaker) makeOne(c *parquet.Column) (*node, error) {
	element := &t.elements[0]
	t.elements = t.elements[1:]
	n := &node{path: strings.Join(c.Path(), "."), first: t.columns, nullable: c.Optional(), defined: c.MaxDefinitionLevel()}
	var err error
	switch {
	case c.Leaf():
		n.encode, err = newEncoder(element)
		n.columns = 1
		t.columns++
	case annotated[*format.ListType](element, deprecated.List):
		err = t.makeList(n, c)
	case annotated[*format.MapType](element, deprecated.Map, deprecated.MapKeyValue):
		err = t.makeMap(n, c)
	case element.LogicalType.Value != nil:
		err = fmt.Errorf("type %s is not supported; leave it out when the file is written", element.LogicalType.Value)
	default:
		return n, t.makeObject(n, c)
	}
	if err != nil {
		return nil, fmt.Errorf("column %q: %w", n.path, err)
	}
	return n, nil
}

// annotated reports whether a group is a list or map, by the format's new or old words for it.
func annotated[T format.LogicalTypeValue](e *format.SchemaElement, old ...deprecated.ConvertedType) bool {
	if e.LogicalType.Value != nil {
		_, is := e.LogicalType.Value.(T)
		return is
	}
	for _, o := range old {
		if e.ConvertedType.Valid && e.ConvertedType.V == o {
			return true
		}
	}
	return false
}

func (t *treeMaker) makeObject(n *node, c *parquet.Column) error {
	n.kind = object
	if len(c.Columns()) == 0 {
		return fmt.Errorf("column %q: a struct without fields", n.path)
	}
	seen := map[string]bool{}
	for i, member := range c.Columns() {
		name := member.Name()
		if err := checkUTF8([]byte(name)); err != nil {
			return fmt.Errorf("column %q: %w", n.path, err)
		}
		if seen[name] {
			return fmt.Errorf("column %q: its field %q is there twice", n.path, name)
		}
		seen[name] = true
		child, err := t.make(member)
		if err != nil {
			return err
		}
		before := byte(',')
		if i == 0 {
			before = '{'
		}
		n.names = append(n.names, string(append(appendString([]byte{before}, name), ':')))
		n.children = append(n.children, child)
		n.columns += child.columns
	}
	return nil
}

// makeList makes a list of a group with one repeated column in it. That column is a wrap around the element, unless it
// looks like the elements of older writers (LogicalTypes.md of parquet-format, "Backward-compatibility rules").
func (t *treeMaker) makeList(n *node, c *parquet.Column) error {
	if len(c.Columns()) != 1 || !c.Columns()[0].Repeated() {
		return errors.New("a list without one repeated field in it")
	}
	repeated := c.Columns()[0]
	inner := repeated.Columns()
	bare := repeated.Leaf() || len(inner) != 1 || inner[0].Repeated() || repeated.Name() == "array" || repeated.Name() == c.Name()+"_tuple"
	var element *node
	var err error
	if bare {
		element, err = t.makeOne(repeated)
	} else {
		t.elements = t.elements[1:] // the wrap's
		element, err = t.make(inner[0])
	}
	if err != nil {
		return err
	}
	of := listOf(element, repeated, n.first)
	n.kind, n.repeats, n.filled, n.columns, n.children = list, of.repeats, of.filled, of.columns, of.children
	return nil
}

// makeMap makes a map of a group with one repeated group of key and value in it.
func (t *treeMaker) makeMap(n *node, c *parquet.Column) error {
	if len(c.Columns()) != 1 || !c.Columns()[0].Repeated() || len(c.Columns()[0].Columns()) != 2 {
		return errors.New("a map without one repeated pair of key and value in it")
	}
	pair := c.Columns()[0]
	t.elements = t.elements[1:] // the pair's
	key, err := t.make(pair.Columns()[0])
	if err != nil {
		return err
	}
	if key.kind != leaf || !pair.Columns()[0].Leaf() {
		return errors.New("the keys of a map must be plain values to be names in JSON")
	}
	value, err := t.make(pair.Columns()[1])
	if err != nil {
		return err
	}
	n.kind, n.repeats, n.filled = dict, pair.MaxRepetitionLevel(), pair.MaxDefinitionLevel()
	n.columns, n.children = key.columns+value.columns, []*node{key, value}
	return nil
}

var errEnded = errors.New("parquet: the column ends before the row group does")

// append appends the node's next value.
func (n *node) append(text []byte, cursors []cursor) ([]byte, error) {
	c := &cursors[n.first]
	if c.ended {
		return text, fmt.Errorf("column %q: %w", n.path, errEnded)
	}
	if n.nullable && c.definition() < n.defined {
		return append(text, "null"...), n.pass(cursors)
	}
	switch n.kind {
	case object:
		return n.appendObject(text, cursors)
	case list:
		return n.appendList(text, cursors)
	case dict:
		return n.appendDict(text, cursors)
	}
	text, err := n.encode(text, &c.buf[c.at])
	if err == nil {
		err = c.next()
	}
	if err != nil {
		err = fmt.Errorf("column %q: %w", n.path, err)
	}
	return text, err
}

// pass passes over the value of each leaf that stands for a null or an empty list.
func (n *node) pass(cursors []cursor) error {
	for i := range n.columns {
		c := &cursors[n.first+i]
		if c.ended {
			return fmt.Errorf("column %q: %w", n.path, errEnded)
		}
		if err := c.next(); err != nil {
			return fmt.Errorf("column %q: %w", n.path, err)
		}
	}
	return nil
}

func (n *node) appendObject(text []byte, cursors []cursor) ([]byte, error) {
	var err error
	for i, child := range n.children {
		text = append(text, n.names[i]...)
		if text, err = child.append(text, cursors); err != nil {
			return text, err
		}
	}
	return append(text, '}'), nil
}

func (n *node) appendList(text []byte, cursors []cursor) ([]byte, error) {
	c := &cursors[n.first]
	if c.definition() < n.filled {
		return append(text, "[]"...), n.pass(cursors)
	}
	text = append(text, '[')
	for {
		var err error
		if text, err = n.children[0].append(text, cursors); err != nil {
			return text, err
		}
		if !n.goesOn(c) {
			return append(text, ']'), nil
		}
		if len(text) > MaxRowBytes {
			return text, fmt.Errorf("column %q: the row is %w", n.path, errFull)
		}
		text = append(text, ',')
	}
}

func (n *node) appendDict(text []byte, cursors []cursor) ([]byte, error) {
	c := &cursors[n.first]
	if c.definition() < n.filled {
		return append(text, "{}"...), n.pass(cursors)
	}
	seen := map[string]bool{}
	text = append(text, '{')
	for {
		start := len(text)
		var err error
		if text, err = n.children[0].append(text, cursors); err != nil {
			return text, err
		}
		switch key := text[start:]; {
		case string(key) == "null":
			return text, fmt.Errorf("column %q: a key is null", n.path)
		case key[0] != '"': // a number or boolean: JSON's names are strings
			text = appendString(text[:start], string(key))
		}
		key := string(text[start:])
		if seen[key] {
			return text, fmt.Errorf("column %q: the key %s is there twice", n.path, key)
		}
		seen[key] = true
		text = append(text, ':')
		if text, err = n.children[1].append(text, cursors); err != nil {
			return text, err
		}
		if !n.goesOn(c) {
			return append(text, '}'), nil
		}
		text = append(text, ',')
	}
}

// goesOn reports whether the next value belongs to the same list.
func (n *node) goesOn(c *cursor) bool { return !c.ended && c.repetition() == n.repeats }
