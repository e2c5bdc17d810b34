package chat

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/dataset"
)

// conversations are what scripts/make-template-reference.py rendered by transformers.
type conversations struct {
	BOS           string `json:"bos_token"`
	EOS           string `json:"eos_token"`
	Now           string `json:"now"`
	Conversations []struct {
		Name     string            `json:"name"`
		Messages []dataset.Message `json:"messages"`
	} `json:"conversations"`
}

// renders are transformers' texts, as hashes, "refused" where it has none; of each conversation without and with a
// generation prompt.
type renders struct {
	Transformers string `json:"transformers"`
	Templates    map[string]struct {
		SHA256  string               `json:"sha256"`
		Renders map[string][2]string `json:"renders"`
	} `json:"templates"`
}

const refused = "refused"

func readJSON(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, v))
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// checkRenders renders every template of folder as transformers did: the same text, and no text where it refuses.
func checkRenders(t *testing.T, folder, reference string) {
	var (
		given conversations
		want  renders
	)
	readJSON(t, "conversations.json", &given)
	readJSON(t, reference, &want)
	now, err := time.Parse("2006-01-02T15:04:05", given.Now)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(given.Conversations), 6)
	require.NotEmpty(t, want.Templates)
	tok := newFake(given.BOS, given.EOS)
	tok.bos, tok.eos = given.BOS, given.EOS
	for name, expected := range want.Templates {
		t.Run(name, func(t *testing.T) {
			source, err := os.ReadFile(filepath.Join(folder, name))
			require.NoError(t, err)
			require.Equal(t, expected.SHA256, digest(string(source)), "another template than the reference's")
			template, err := NewTemplate(string(source), tok)
			require.NoError(t, err)
			template = template.At(now)
			texts, refusals := 0, 0
			var reason error
			for _, c := range given.Conversations {
				hashes, known := expected.Renders[c.Name]
				require.True(t, known, c.Name)
				for i, prompt := range []bool{false, true} {
					text, err := template.Render(c.Messages, prompt)
					if hashes[i] == refused {
						assert.Error(t, err, "%s, prompt %v: transformers refuses, here it is %q", c.Name, prompt, text)
						refusals, reason = refusals+1, err
						continue
					}
					if assert.NoError(t, err, "%s, prompt %v", c.Name, prompt) {
						assert.Equal(t, hashes[i], digest(text), "%s, prompt %v: %q", c.Name, prompt, text)
						texts++
					}
				}
			}
			if refusals > 0 {
				t.Logf("%d texts as transformers' (%s), %d refused as there: %v", texts, want.Transformers, refusals, reason)
			}
		})
	}
}

func TestRendersAsTransformers(t *testing.T) {
	checkRenders(t, filepath.Join("testdata", "templates"), "reference.json")
}

// The templates of models lie beside the repository; their texts are not copied into it.
func TestRendersTemplatesOfModelsAsTransformers(t *testing.T) {
	folder := filepath.Join("..", "..", "..", "shared", "data", "llama_cpp_vocab", "templates")
	if _, err := os.Stat(folder); err != nil {
		t.Skipf("no templates of models at %s", folder)
	}
	checkRenders(t, folder, "reference-models.json")
}
