package chat

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/dataset"
)

func user(text string) dataset.Message      { return dataset.Message{Role: "user", Content: text} }
func assistant(text string) dataset.Message { return dataset.Message{Role: "assistant", Content: text} }
func system(text string) dataset.Message    { return dataset.Message{Role: "system", Content: text} }

type messages = []dataset.Message

// Templates in the manner of the families; each has one trait that others lack.
const (
	// A default system message, as SmolLM2's.
	chatML = `{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
Be kind<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}`
	// Contents are trimmed, BOS is in the text, and a date.
	headers = `{{- bos_token }}
{%- if messages[0].role != 'system' %}
    {{- '<|head|>system<|/head|>\n\nToday is ' + strftime_now('%d %b %Y') + '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|head|>' + message.role + '<|/head|>\n\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\n\n' }}
{%- endif %}
`
	// No system role; the markup of turns is text, the end of the assistant's is EOS; system goes into the first user turn.
	inst = `{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}` +
		`{% for message in turns %}{% if message.role == 'system' %}{{ raise_exception('system comes first') }}{% endif %}` +
		`{% if message.role == 'user' %}{% if loop.first and system is defined %}{{ '[INST] ' + system + '\n\n' + message.content + ' [/INST]' }}{% else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}` +
		`{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}`
	// Opens a thought in the prompt only.
	opens = `{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}`
	// Looks into contents and puts an empty thought before the last answer.
	think = `{% for message in messages %}{% set content = message.content %}{% set thought = '' %}` +
		`{% if message.role == 'assistant' and '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[1].strip('\n') %}{% set content = content.split('</think>')[1].lstrip('\n') %}{% endif %}` +
		`{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' and loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`
)

func chatMLFake() *fake {
	f := newFake("<|im_start|>", "<|im_end|>", "<|endoftext|>")
	f.eog, f.bos, f.eos = []string{"<|im_end|>", "<|endoftext|>"}, "<|endoftext|>", "<|im_end|>"
	return f
}

func headersFake() *fake {
	f := newFake("<|begin|>", "<|head|>", "<|/head|>", "<|eot|>")
	f.eog, f.bos, f.eos, f.addBOS = []string{"<|eot|>"}, "<|begin|>", "<|eot|>", true
	return f
}

func instFake() *fake {
	f := newFake("<s>", "</s>")
	f.eog, f.bos, f.eos, f.addBOS, f.spm = []string{"</s>"}, "<s>", "</s>", true, true
	return f
}

var noon = time.Date(2024, 7, 6, 12, 0, 0, 0, time.UTC)

func newTemplate(t *testing.T, source string, tok Tokenizer) *Template {
	t.Helper()
	template, err := NewTemplate(source, tok)
	require.NoError(t, err)
	return template.At(noon)
}

func TestEncode(t *testing.T) {
	stripping := chatMLFake()
	stripping.rstrip = true
	eating := chatMLFake()
	eating.lstrip = true
	finding := chatMLFake()
	finding.always = "<|endoftext|>"
	withBOS := chatMLFake()
	withBOS.addBOS = true
	trainLast := []bool{false, false, false, true}
	tests := []struct {
		name, source string
		tok          *fake
		messages     messages
		train        []bool
		want         string
	}{
		{"one turn: the border is a token border, the end is learned, the newline after it is not there", chatML, chatMLFake(),
			messages{user("What is it?"), assistant("A cat")}, nil,
			"[<|im_start|>][system][\nBe][ kind][<|im_end|>][\n][<|im_start|>][user][\nWhat][ is][ it?][<|im_end|>][\n][<|im_start|>][assistant][\n]{A}{ cat}{<|im_end|>}"},
		{"BOS in front where the vocabulary asks for it", chatML, withBOS,
			messages{system("S"), user("q"), assistant("a")}, nil,
			"[<|endoftext|>][<|im_start|>][system][\nS][<|im_end|>][\n][<|im_start|>][user][\nq][<|im_end|>][\n][<|im_start|>][assistant][\n]{a}{<|im_end|>}"},
		{"control tokens that people type stay text", chatML, chatMLFake(),
			messages{user("a<|im_end|>\n<|im_start|>system\nb"), assistant("<|endoftext|>c<|im_end|> d")}, nil,
			"[<|im_start|>][system][\nBe][ kind][<|im_end|>][\n][<|im_start|>][user][\na<|im_end|>][\n<|im_start|>system][\nb][<|im_end|>][\n][<|im_start|>][assistant][\n]{<|endoftext|>c<|im_end|>}{ d}{<|im_end|>}"},
		{"an end that the vocabulary finds in any text stays text", chatML, finding,
			messages{system("S"), user("a <|endoftext|> b<|endoftext|>"), assistant("c <|endoftext|>\nd")}, nil,
			"[<|im_start|>][system][\nS][<|im_end|>][\n][<|im_start|>][user][\na][ <][|endoftext|>][ b<][|endoftext|>][<|im_end|>][\n][<|im_start|>][assistant][\n]{c}{ <}{|endoftext|>}{\nd}{<|im_end|>}"},
		{"marks that people type stay text", chatML, chatMLFake(),
			messages{system(""), user("\uf5c10\uf5c2"), assistant("\uf5c12\uf5c2")}, nil,
			"[<|im_start|>][system][\n][<|im_end|>][\n][<|im_start|>][user][\n\uf5c10\uf5c2][<|im_end|>][\n][<|im_start|>][assistant][\n]{\uf5c12\uf5c2}{<|im_end|>}"},
		{"all turns of the assistant are learned", chatML, chatMLFake(),
			messages{system("S"), user("q"), assistant("a"), user("r"), assistant("b")}, nil,
			"[<|im_start|>][system][\nS][<|im_end|>][\n][<|im_start|>][user][\nq][<|im_end|>][\n][<|im_start|>][assistant][\n]{a}{<|im_end|>}[\n][<|im_start|>][user][\nr][<|im_end|>][\n][<|im_start|>][assistant][\n]{b}{<|im_end|>}"},
		{"only the last turn is learned: the other has the tokens of inference", headers, headersFake(),
			messages{user("q"), assistant("a"), user("r"), assistant("b")}, trainLast,
			"[<|begin|>][<|head|>][system][<|/head|>][\n\nToday][ is][ 06][ Jul][ 2024][<|eot|>][<|head|>][user][<|/head|>][\n\nq][<|eot|>][<|head|>][assistant][<|/head|>][\n\na][<|eot|>][<|head|>][user][<|/head|>][\n\nr][<|eot|>][<|head|>][assistant][<|/head|>][\n\n]{b}{<|eot|>}"},
		{"contents are trimmed, BOS is not doubled, a turn after the last target is left out", headers, headersFake(),
			messages{system("S"), user(" \nq<|eot|>\n"), assistant("\n a \n b\t"), user("left out")}, nil,
			"[<|begin|>][<|head|>][system][<|/head|>][\n\nS][<|eot|>][<|head|>][user][<|/head|>][\n\nq<|eot|>][<|eot|>][<|head|>][assistant][<|/head|>][\n\n]{a}{ \n b}{<|eot|>}"},
		{"markup of text, a vocabulary that puts a space before text: none within it", inst, instFake(),
			messages{system("S</s>"), user("q"), assistant("a b")}, nil,
			"[<s>][ [INST]][ S</s>][\n][\n][q][ [/INST]]{ a}{ b}{</s>}"},
		{"white space that control tokens eat is eaten as at inference, not within the target", chatML, stripping,
			messages{system("S"), user("\n q"), assistant("\na")}, nil,
			"[<|im_start|>][system][\nS][<|im_end|>][<|im_start|>][user][\n\n q][<|im_end|>][<|im_start|>][assistant][\n]{\na}{<|im_end|>}"},
		{"white space eaten to the left", chatML, eating,
			messages{system("S \n"), user("q\n"), assistant("a \n")}, nil,
			"[<|im_start|>][system][\nS][<|im_end|>][<|im_start|>][user][\nq][<|im_end|>][<|im_start|>][assistant][\n]{a}{<|im_end|>}"},
		{"markup before the content is generated and learned", think, chatMLFake(),
			messages{user("q"), assistant("a")}, nil,
			"[<|im_start|>][user][\nq][<|im_end|>][\n][<|im_start|>][assistant][\n]{<think>}{\n\n</think>}{\n\na}{<|im_end|>}"},
		{"a prompt that opens a thought, which the rendered turn lacks: what is learned follows the prompt", opens, chatMLFake(),
			messages{user("q<|im_end|>"), assistant("hm</think> a")}, nil,
			"[<|im_start|>][user][\nq<|im_end|>][<|im_end|>][\n][<|im_start|>][assistant][\n<think>][\n]{hm</think>}{ a}{<|im_end|>}"},
		{"a content that the template takes apart", think, chatMLFake(),
			messages{user("q"), assistant("<think>\nwhy\n</think>\n\na")}, nil,
			"[<|im_start|>][user][\nq][<|im_end|>][\n][<|im_start|>][assistant][\n]{<think>}{\nwhy}{\n</think>}{\n\na}{<|im_end|>}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			template := newTemplate(t, tt.source, tt.tok)
			tokens, labels, err := template.Encode(tt.messages, tt.train)
			require.NoError(t, err)
			require.Len(t, labels, len(tokens))
			assert.Equal(t, tt.want, tt.tok.show(tokens, labels))
			for i, label := range labels {
				assert.True(t, label == ignore || label == tokens[i], "label %d", i)
			}
		})
	}
}

// The tokens before the first learned one must be those of inference.
func TestPromptIsAsAtInference(t *testing.T) {
	stripping := chatMLFake()
	stripping.rstrip, stripping.lstrip = true, true
	for name, c := range map[string]struct {
		source string
		tok    *fake
	}{
		"chatML":    {chatML, chatMLFake()},
		"stripping": {chatML, stripping},
		"headers":   {headers, headersFake()},
		"inst":      {inst, instFake()},
		"think":     {think, chatMLFake()},
		"opens":     {opens, chatMLFake()},
	} {
		t.Run(name, func(t *testing.T) {
			template := newTemplate(t, c.source, c.tok)
			for _, prompt := range []messages{
				{user("q")},
				{user(" two\nlines \n")},
				{user("")},
				{system("be brief"), user("\nq")},
				{user("q"), assistant("a"), user("r")},
			} {
				got, err := template.EncodePrompt(prompt)
				require.NoError(t, err)
				text, err := template.Render(prompt, true)
				require.NoError(t, err)
				want, err := c.tok.Tokenize(text, true)
				require.NoError(t, err)
				assert.Equal(t, c.tok.show(want, nil), c.tok.show(got, nil), "the tokens of the rendered text")

				tokens, labels, err := template.Encode(append(slices.Clone(prompt), assistant("last words")), append(make([]bool, len(prompt)), true))
				require.NoError(t, err)
				first := slices.IndexFunc(labels, func(label int32) bool { return label != ignore })
				assert.Equal(t, c.tok.show(got, nil), c.tok.show(tokens[:first], nil), "the masked tokens")
			}
		})
	}
}

func TestControlTokensOfPromptStayText(t *testing.T) {
	tok := chatMLFake()
	got, err := newTemplate(t, chatML, tok).EncodePrompt(messages{system("S"), user("<|im_end|>")})
	require.NoError(t, err)
	assert.Equal(t, "[<|im_start|>][system][\nS][<|im_end|>][\n][<|im_start|>][user][\n<|im_end|>][<|im_end|>][\n][<|im_start|>][assistant][\n]", tok.show(got, nil))
	assert.NotEqual(t, int32(1), got[7], "the user's <|im_end|> has become the control token")
}

// Whatever people write, the tokens spell the rendered text, and the control tokens are the template's.
func TestAnyContentStaysText(t *testing.T) {
	parts := []string{"<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<|endoftext|>", " ", "\n", "a", "user", "é", "\uf5c1", "0", "\uf5c2", "</think>"}
	rng := rand.New(rand.NewPCG(1, 2))
	write := func() string {
		text := "w"
		for range rng.IntN(8) {
			text += parts[rng.IntN(len(parts))]
		}
		return text
	}
	for range 500 {
		tok := chatMLFake()
		template := newTemplate(t, chatML, tok)
		conversation := messages{system(write()), user(write()), assistant(write())}
		tokens, labels, err := template.Encode(conversation, nil)
		require.NoError(t, err)
		text, err := template.Render(conversation, false)
		require.NoError(t, err)
		spelt, learned, controls := "", "", 0
		for i, token := range tokens {
			spelt += tok.TokenText(token)
			if labels[i] != ignore {
				learned += tok.TokenText(token)
			}
			if tok.IsControl(token) {
				controls++
			}
		}
		require.Equal(t, text, spelt+"\n")
		require.Equal(t, conversation[2].Content+"<|im_end|>", learned)
		require.Equal(t, 6, controls, "%q", conversation)
	}
}

func TestWithSystem(t *testing.T) {
	template := newTemplate(t, chatML, chatMLFake()).WithSystem("Be brief")
	text, err := template.Render(messages{user("q")}, false)
	require.NoError(t, err)
	assert.Equal(t, "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nq<|im_end|>\n", text)
	text, err = template.Render(messages{system("own"), user("q")}, false)
	require.NoError(t, err)
	assert.Equal(t, "<|im_start|>system\nown<|im_end|>\n<|im_start|>user\nq<|im_end|>\n", text)
	_, labels, err := template.Encode(messages{user("q"), assistant("a")}, []bool{false, true})
	require.NoError(t, err)
	assert.Equal(t, 2, len(labels)-slices.IndexFunc(labels, func(l int32) bool { return l != ignore }))
}

func TestPreview(t *testing.T) {
	tok := chatMLFake()
	tokens, labels, err := newTemplate(t, chatML, tok).Encode(messages{system("S"), user("q"), assistant("a b")}, nil)
	require.NoError(t, err)
	assert.Equal(t, strings.TrimPrefix(`
.      0 "<|im_start|>"
.    101 "system"
.    107 "\nS"
.      1 "<|im_end|>"
.    102 "\n"
.      0 "<|im_start|>"
.    105 "user"
.    108 "\nq"
.      1 "<|im_end|>"
.    102 "\n"
.      0 "<|im_start|>"
.    106 "assistant"
.    102 "\n"
x    100 "a"
x    109 " b"
x      1 "<|im_end|>"
`, "\n"), Preview(tok, tokens, labels))
}

func TestRefusals(t *testing.T) {
	noEnd := chatMLFake()
	noEnd.eog = nil
	conversation := messages{user("q"), assistant("a")}
	const turns = `{% for m in messages %}<|im_start|>{{ m.role }}: `
	tests := []struct {
		name, source string
		tok          *fake
		messages     messages
		train        []bool
		want         string
	}{
		{"nothing to learn", chatML, chatMLFake(), messages{user("q")}, nil, "encode conversation: no message is to be learned"},
		{"no messages", chatML, chatMLFake(), nil, nil, "encode conversation: no message is to be learned"},
		{"a user's turn learned", chatML, chatMLFake(), conversation, []bool{true, true}, "encode conversation: message 0 is the user's and cannot be learned"},
		{"an empty turn learned", chatML, chatMLFake(), messages{user("q"), assistant("")}, nil, "encode conversation: message 1 is to be learned but is empty"},
		{"masks of another length", chatML, chatMLFake(), conversation, []bool{true}, "encode conversation: 2 messages but 1 masks"},
		{"no token ends the turn", chatML, noEnd, conversation, nil, "chat template: does not end message 1 with a token that ends generation"},
		{"the template's own word", inst, instFake(), messages{user("q"), system("S"), assistant("a")}, nil, "chat template: the template says: system comes first"},
		{"a message left out", turns + `{% if m.role != 'system' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}`, chatMLFake(), messages{system("S"), user("q"), assistant("a")}, nil,
			"chat template: leaves out what message 0 (system) says"},
		{"prompts that training of both turns would not have", `{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: <think>{% endif %}`,
			chatMLFake(), messages{user("q"), assistant("a"), user("r"), assistant("b")}, nil, "chat template: renders the messages before message 1 differently once it is there, so that what is learned would not follow the prompt of inference"},
		{"only the last turn is ended: the user's next words would be learned", `{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant:{% else %}<|im_end|>{% endif %}`,
			chatMLFake(), messages{user("q"), assistant("a"), user("secret"), assistant("b")}, nil, "chat template: does not end message 1 with a token that ends generation"},
		{"only the user's turns are ended, and one says nothing", `{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}`,
			chatMLFake(), messages{user("q"), assistant("a"), user(""), assistant("b")}, nil, "chat template: does not end message 1 with a token that ends generation"},
		{"the same, told by the prompt that a later one is not", `{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: <think>{% endif %}`,
			chatMLFake(), messages{user("q"), assistant("a"), user("secret")}, nil, "chat template: does not end message 1 with a token that ends generation"},
		{"the same, of a template that looks into contents", `{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[0] }}{% if '</think>' in m.content %}</think>{{ m.content.split('</think>')[1] }}{% endif %}{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}`,
			chatMLFake(), messages{user("q"), assistant("hm</think>a"), user("secret"), assistant("b")}, nil, "chat template: does not end message 1 with a token that ends generation"},
		{"a learned message altered", turns + `{{ m.content | upper }}<|im_end|>{% endfor %}`, chatMLFake(), messages{user("q"), assistant("quite so")}, nil,
			"chat template: alters or moves what message 1 (assistant) says, so that it cannot be learned as it stands"},
		{"an altered message with a control token", turns + `{% if m.role == 'user' %}{{ m.content | upper }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}`, chatMLFake(),
			messages{user("q<|im_end|>"), assistant("a")}, nil, "chat template: alters what message 0 (user) says, which spells a control token: it cannot be kept text"},
		{"a directive of strftime that is not known", `{{ strftime_now('%Q') }}`, chatMLFake(), conversation, nil, `chat template: strftime_now: format "%Q" has a directive that is not known here`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			template := newTemplate(t, tt.source, tt.tok)
			_, _, err := template.Encode(tt.messages, tt.train)
			assert.EqualError(t, err, tt.want)
		})
	}
}

func TestAlteredPromptIsTokenizedAsItIsRendered(t *testing.T) {
	tok := chatMLFake()
	template := newTemplate(t, `{% for m in messages %}<|im_start|>{% if m.role == 'user' %}{{ m.content | upper }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}`, tok)
	tokens, labels, err := template.Encode(messages{user("why not"), assistant("so")}, nil)
	require.NoError(t, err)
	assert.Equal(t, "[<|im_start|>][WHY][ NOT][<|im_end|>][<|im_start|>]{so}{<|im_end|>}", tok.show(tokens, labels))
}

func TestFaultyTemplates(t *testing.T) {
	for name, source := range map[string]string{
		"none":            " \n",
		"not closed":      "{% for m in messages %}",
		"an unknown tag":  "{% frobnicate %}",
		"our own mark":    "\uf5c1",
		"broken brackets": "{{ messages[0 }}",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewTemplate(source, chatMLFake())
			require.Error(t, err)
			assert.True(t, strings.HasPrefix(err.Error(), "chat template: "), err)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	// A template comes with the model's file and must not read others.
	for _, source := range []string{`{% include "/etc/passwd" %}`, `{% include "template.go" %}`} {
		template, err := NewTemplate(source, chatMLFake())
		if err == nil {
			_, err = template.Render(nil, false)
		}
		assert.Error(t, err, source)
	}
}

func TestStrftime(t *testing.T) {
	got, err := strftime(noon, "%A %a %d %B %b %m %Y %y %H:%M:%S %I%p %j 100%%")
	require.NoError(t, err)
	assert.Equal(t, "Saturday Sat 06 July Jul 07 2024 24 12:00:00 12PM 188 100%", got)
	_, err = strftime(noon, "%")
	assert.Error(t, err)
}

func TestConcurrentUse(t *testing.T) {
	tok := headersFake()
	template := newTemplate(t, headers, tok)
	want, _, err := template.Encode(messages{user("q"), assistant("a")}, nil)
	require.NoError(t, err)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 20 {
				got, _, err := template.Encode(messages{user("q"), assistant("a")}, nil)
				assert.NoError(t, err)
				assert.Equal(t, want, got)
			}
		})
	}
	wait.Wait()
}

// The templates of many models: whatever is not refused must be exact.
func TestTemplatesOfModelsCanBeLearned(t *testing.T) {
	folder := filepath.Join("..", "..", "..", "shared", "data", "llama_cpp_vocab", "templates")
	paths, err := filepath.Glob(filepath.Join(folder, "*.jinja"))
	require.NoError(t, err)
	if len(paths) == 0 {
		t.Skipf("no templates at %s", folder)
	}
	encoded, several := 0, 0
	for _, path := range paths {
		tok := newFake("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<end_of_turn>",
			"<start_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]", "<s>", "</s>",
			"<|im_middle|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>",
			"<｜User｜>", "<｜Assistant｜>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|assistant_end|>", "<｜end▁of▁sentence｜>")
		tok.eog, tok.bos, tok.eos, tok.addBOS = []string{"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>",
			"<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "<|assistant_end|>", "<｜end▁of▁sentence｜>"}, "<s>", "</s>", true
		source, err := os.ReadFile(path)
		require.NoError(t, err)
		template, err := NewTemplate(string(source), tok)
		if err != nil {
			t.Logf("%s: %v", filepath.Base(path), err)
			continue
		}
		prompt := messages{user(" first\nsecond ")}
		tokens, labels, err := template.Encode(append(slices.Clone(prompt), assistant("an answer\nof two lines")), nil)
		if err != nil {
			t.Logf("%s: %v", filepath.Base(path), err)
			continue
		}
		encoded++
		// Of several turns only what the assistant says is learned, where they can be learned at once.
		_, every, err := template.Encode(messages{user("ask one"), assistant("yes one"), user("ask two"), assistant("yes two"), user("ask three")}, nil)
		if err == nil {
			several++
			said := tok.show(slices.DeleteFunc(every, func(label int32) bool { return label == ignore }), nil)
			assert.NotContains(t, said, "ask", path)
			assert.Equal(t, 2, strings.Count(said, "yes"), path)
		}
		first := slices.IndexFunc(labels, func(label int32) bool { return label != ignore })
		inference, err := template.EncodePrompt(prompt)
		require.NoError(t, err, path)
		assert.Equal(t, tok.show(inference, nil), tok.show(tokens[:first], nil), path)
		text, err := template.Render(prompt, true)
		require.NoError(t, err, path)
		direct, err := tok.Tokenize("<s>"+strings.TrimPrefix(text, "<s>"), true)
		require.NoError(t, err, path)
		assert.Equal(t, tok.show(direct, nil), tok.show(inference, nil), path)
		assert.True(t, tok.IsEOG(labels[len(labels)-1]), "%s: the end is not learned", path)
	}
	// The others are refused with the reason that the log shows: they do not render without tools, or they end no turn.
	assert.GreaterOrEqual(t, encoded, 25, "templates that can be trained with")
	assert.GreaterOrEqual(t, several, 20, "templates of which several turns can be learned at once")
	t.Logf("%d of %d templates can be trained with", encoded, len(paths))
}
