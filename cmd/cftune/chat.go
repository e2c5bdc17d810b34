package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cftune/bindings/engine"
	"cftune/trainer/chat"
	"cftune/trainer/dataset"
	"cftune/trainer/dataset/source"
	"cftune/trainer/gguf"
)

const chatLong = `Talk with a base model and, if given, a LoRA adapter, through libllama.

Each line of standard input is a message; one that ends in a backslash goes on in the next line. The model reads the whole
conversation before each answer, laid out by its chat template as in training, and computes only what is new in it. On a
terminal lines can be edited and called back (arrow keys), what is pasted is one message, and Ctrl-C ends an answer; at the
mark it ends the program, as Ctrl-D does. Elsewhere nothing but answers is written to standard output.

A line that begins with / is for the program:
  /clear   forget the conversation
  /regen   draw another answer to the last message (with --temperature)
  /help    show these
  /exit    end; so does the end of the input
Two slashes begin a message that begins with one.`

// defaultContext is the cache of a conversation, in tokens, where the model was made for as many.
const defaultContext = 4096

func newChatCommand() *cobra.Command {
	o := generateOptions{}
	cmd := &cobra.Command{
		Use:   "chat --model MODEL [--adapter ADAPTER]",
		Short: "Talk with a model and an adapter",
		Long:  chatLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(false); err != nil {
				return codedError{fmt.Errorf("chat: %w", err), codeUsage}
			}
			if o.context < 0 {
				return codedError{fmt.Errorf("chat: --context: must be 0 or more, got %d", o.context), codeUsage}
			}
			if err := o.find(cmd); err != nil {
				return fmt.Errorf("chat: %w", err)
			}
			if err := o.chat(cmd); err != nil {
				return engineError(fmt.Errorf("chat: %w", err))
			}
			return nil
		},
	}
	o.commonFlags(cmd)
	cmd.Flags().IntVar(&o.maxTokens, "max-tokens", 1024, "most tokens of an answer")
	cmd.Flags().IntVar(&o.context, "context", 0, fmt.Sprintf("most tokens of a conversation (0 = %d, or what the model was made for if that is less)", defaultContext))
	o.parallel = 1
	return cmd
}

// chat opens the model and talks.
func (o generateOptions) chat(cmd *cobra.Command) error {
	vocab, template, err := openChat(o.model, o.templateFile, o.system)
	if err != nil {
		return err
	}
	defer vocab.Close()
	if o.context == 0 {
		base, err := gguf.Open(o.model)
		if err != nil {
			return codedError{err, codeData}
		}
		o.context = defaultContext
		if made, ok := base.Uint(base.Architecture() + ".context_length"); ok && made > 0 {
			o.context = int(min(made, defaultContext))
		}
	}
	session, err := o.newSession(o.context, 1, o.context)
	if err != nil {
		return err
	}
	defer session.Close()
	c := &conversation{
		options:   engine.GenerateOptions{MaxTokens: o.maxTokens, Sampling: o.sampling, StopStrings: o.stops, Keep: true},
		generator: engine.NewGenerator(session, vocab), template: template, size: o.context,
		out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(),
	}
	in, _ := cmd.InOrStdin().(*os.File)
	notes, _ := c.notes.(*os.File)
	if in == nil || notes == nil || !hasSize(in) || !hasSize(notes) {
		c.lines = plainLines{bufio.NewReader(source.Interruptible(cmd.Context(), cmd.InOrStdin()))}
		return c.talk(cmd.Context())
	}
	lines := newTerminalLines(cmd.Context(), in, notes)
	defer lines.close()
	c.lines, c.atTerminal = lines, true
	fmt.Fprintln(c.notes, "/help shows what can be typed beside messages; Ctrl-C ends an answer, Ctrl-D the program")
	return c.talk(cmd.Context())
}

// conversation is what was said, and what answers it.
type conversation struct {
	options   engine.GenerateOptions
	generator *engine.Generator
	template  *chat.Template
	size      int // of the context
	messages  []dataset.Message

	lines      lineReader
	atTerminal bool
	out, notes io.Writer
}

// lineReader gives what is typed, line by line, without line breaks; io.EOF ends it.
type lineReader interface {
	line(mark string) (string, error)
}

func (c *conversation) talk(ctx context.Context) error {
	for {
		text, err := c.read()
		if err == io.EOF {
			if c.atTerminal {
				fmt.Fprintln(c.notes)
			}
			return nil
		}
		if err == errLongLine {
			fmt.Fprintln(c.notes, err)
			continue
		}
		if err != nil {
			return err
		}
		command, isCommand := strings.CutPrefix(strings.TrimSpace(text), "/")
		switch {
		case strings.TrimSpace(text) == "":
			continue
		case isCommand && !strings.HasPrefix(command, "/"):
			if command == "exit" || command == "quit" || command == "bye" {
				return nil
			}
			err = c.do(ctx, command)
		default:
			if isCommand {
				text = strings.Replace(text, "//", "/", 1)
			}
			c.messages = append(c.messages, dataset.Message{Role: dataset.RoleUser, Content: text})
			err = c.answer(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// do is what a line for the program asks for, but to end.
func (c *conversation) do(ctx context.Context, command string) error {
	switch command {
	case "help", "?":
		_, commands, _ := strings.Cut(chatLong, "for the program:\n")
		fmt.Fprintln(c.notes, commands)
		return nil
	case "clear":
		c.messages = nil
		return nil
	case "regen":
		return c.regenerate(ctx)
	}
	return c.complain(fmt.Errorf("there is no /%s: /help shows what there is, and //%s is a message that begins with a slash", command, command))
}

// complain tells a person what is wrong, and ends a program whose input nobody can mend.
func (c *conversation) complain(err error) error {
	if !c.atTerminal {
		return codedError{err, codeData}
	}
	fmt.Fprintln(c.notes, err)
	return nil
}

// read gives the next message: a line, or several of which all but the last end in a backslash.
func (c *conversation) read() (string, error) {
	var (
		text strings.Builder
		cut  error
	)
	for mark := "> "; ; mark = ". " {
		line, err := c.lines.line(mark)
		if err == errLongLine {
			cut, err = err, nil
		}
		if err != nil {
			if err == io.EOF && text.Len() > 0 {
				return text.String(), nil
			}
			return "", err
		}
		before, goesOn := strings.CutSuffix(line, "\\")
		text.WriteString(before)
		if !goesOn {
			return text.String(), cut
		}
		text.WriteByte('\n')
	}
}

func (c *conversation) regenerate(ctx context.Context) error {
	n := len(c.messages)
	switch {
	case n == 0 || c.messages[n-1].Role != dataset.RoleAssistant:
		return c.complain(errors.New("/regen: there is no answer yet"))
	case c.options.Sampling.Temperature == 0:
		return c.complain(errors.New("/regen: the answer would be the same: begin with --temperature 0.7, for example"))
	}
	c.options.Sampling.Seed++
	c.messages = c.messages[:n-1]
	return c.answer(ctx)
}

// answer writes the answer to the last message. One that cannot be answered is taken back.
func (c *conversation) answer(ctx context.Context) error {
	last := len(c.messages) - 1
	prompt, err := c.template.EncodePrompt(c.messages)
	if err == nil && len(prompt) >= c.size {
		err = fmt.Errorf("the conversation has %d tokens, and the context has room for %d: /clear begins a new one, --context N makes more room", len(prompt), c.size)
	}
	if err != nil {
		c.messages = c.messages[:last]
		return c.complain(err)
	}
	answering, stop := ctx, func() {}
	if c.atTerminal {
		answering, stop = signal.NotifyContext(ctx, os.Interrupt)
	}
	defer stop()
	var writeErr error
	c.options.OnText = func(_ int, text string) {
		if _, err := io.WriteString(c.out, text); err != nil {
			writeErr = cmp.Or(writeErr, err)
			stop()
		}
	}
	answers, err := c.generator.Generate(answering, [][]int32{prompt}, c.options)
	interrupted := err != nil && answering.Err() != nil && ctx.Err() == nil && writeErr == nil
	if err != nil && !interrupted {
		return cmp.Or(writeErr, err)
	}
	if _, err := io.WriteString(c.out, "\n"); err != nil {
		return err
	}
	a := answers[0]
	switch {
	case interrupted && a.Text == "":
		c.messages = c.messages[:last]
		fmt.Fprintln(c.notes, "[interrupted before it began: the message is taken back]")
		return nil
	case interrupted:
		fmt.Fprintln(c.notes, "[interrupted]")
	case a.Reason == engine.StopLength:
		fmt.Fprintf(c.notes, "[cut off: --max-tokens is %d]\n", c.options.MaxTokens)
	case a.Reason == engine.StopContext:
		fmt.Fprintf(c.notes, "[cut off: the conversation fills the context of %d tokens; /clear begins a new one, --context N makes more room]\n", c.size)
	}
	// An answer that was cut off may end within a character; what a conversation holds is text.
	c.messages = append(c.messages, dataset.Message{Role: dataset.RoleAssistant, Content: string([]rune(a.Text))})
	return nil
}

// plainLines are those of a file or a pipe.
type plainLines struct{ in *bufio.Reader }

func (p plainLines) line(string) (string, error) {
	line, err := p.in.ReadString('\n')
	if err == io.EOF && line != "" {
		err = nil
	}
	return strings.TrimRight(line, "\r\n"), err
}

// longestTyped is the length, in characters, from which x/term passes over what is typed.
const longestTyped = 4096

var errLongLine = fmt.Errorf("a line has more than the %d characters that can be typed, so the message was not sent: end lines with a backslash, "+
	"or give it as a file: cftune chat ... < FILE", longestTyped-1)

// terminalLines are typed: they can be edited and called back. What is pasted is one message, however many lines it has.
type terminalLines struct {
	in, out  *os.File
	terminal *term.Terminal
	// A signal at the mark, which is not of the keyboard there, ends the program as Ctrl-C does: it must not leave the terminal without echo.
	interrupts chan os.Signal
	interrupt  context.CancelFunc
	ended      context.Context // by an interrupt, or with within
	within     context.Context
}

func newTerminalLines(ctx context.Context, in, out *os.File) *terminalLines {
	l := &terminalLines{in: in, out: out, within: ctx, interrupts: make(chan os.Signal, 1)}
	l.ended, l.interrupt = context.WithCancel(ctx)
	l.terminal = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{&wholeRunes{in: source.Interruptible(l.ended, in)}, out}, "")
	signal.Reset(os.Interrupt) // else it would end the program within an answer
	signal.Notify(l.interrupts, os.Interrupt)
	return l
}

func (l *terminalLines) close() {
	signal.Stop(l.interrupts)
	l.interrupt()
}

func (l *terminalLines) line(mark string) (string, error) {
	before, err := term.MakeRaw(int(l.in.Fd()))
	if err != nil {
		return "", fmt.Errorf("the terminal: %w", err)
	}
	defer func() { _ = term.Restore(int(l.in.Fd()), before) }() // nothing else can be done about it
	select {
	case <-l.interrupts: // of the answer before
	default:
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-l.interrupts:
			l.interrupt()
		case <-done:
		}
	}()
	if width, height, err := term.GetSize(int(l.out.Fd())); err == nil { // it may have changed
		_ = l.terminal.SetSize(width, height) // a wrong width only looks bad
	}
	l.terminal.SetPrompt(mark)
	l.terminal.SetBracketedPasteMode(true)
	defer l.terminal.SetBracketedPasteMode(false)
	line, err := l.terminal.ReadLine()
	if err != nil && l.ended.Err() != nil && l.within.Err() == nil {
		return "", io.EOF
	}
	line = strings.ReplaceAll(line, string(standIn), string(utf8.RuneError))
	if errors.Is(err, term.ErrPasteIndicator) { // the line was pasted, and others or what is typed may follow
		line, err = line+"\\", nil
	}
	if err == nil && utf8.RuneCountInString(line) >= longestTyped {
		err = errLongLine
	}
	return line, err
}

// standIn is read in the place of U+FFFD, and of bytes that are no character: x/term drops these, and takes what follows with the next key only.
const standIn = '\uf8ff'

var errEndless = errors.New("the terminal: an escape sequence has no end")

// wholeRunes reads characters as a whole, and standIn for what is none.
type wholeRunes struct {
	in        io.Reader
	held, out []byte
	err       error
}

func (r *wholeRunes) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, errEndless // x/term would ask for more of nothing, and take no key that ends it
	}
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var chunk [256]byte
		n, err := r.in.Read(chunk[:])
		r.held, r.err = append(r.held, chunk[:n]...), err
		for len(r.held) > 0 && (err != nil || utf8.FullRune(r.held)) {
			c, size := utf8.DecodeRune(r.held)
			if c == utf8.RuneError {
				c = standIn
			}
			r.out, r.held = utf8.AppendRune(r.out, c), r.held[size:]
		}
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}
