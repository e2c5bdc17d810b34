package main

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/gguf"
	"cftune/trainer/hub"
	"cftune/trainer/metrics"
)

//go:embed card.md.tmpl
var cardText string

// cardTemplate lays a model card out. What people wrote is flattened: a line end or a bar would end a table's cell.
var cardTemplate = template.Must(template.New("card").Funcs(template.FuncMap{"percent": func(x float64) float64 { return 100 * x }}).Parse(cardText))

// card is what a model card tells.
type card struct {
	BaseModel, Relation, Library, License, Title, What, Base, Exported string
	Tags                                                               []string
	Model                                                              trainer.ModelFile
	Step                                                               int
	Version, Begun, Started                                            string
	Config                                                             config.Run
	Plan                                                               trainer.Plan
	DataDigest, ValidationDigest                                       string
	Stages                                                             []string
	Changes                                                            []cardChange
	Settings, Metrics                                                  [][2]string
	Proof                                                              *exportProof
	Usage, Licences                                                    string
}

type cardChange struct {
	Step int
	Text string
}

// writeCard writes a model card (a README.md with Hugging Face's front matter) about an export.
func (e *exporter) writeCard(record trainer.Record, c *checkpoint.Checkpoint, result exported, served servedAs) error {
	base, err := gguf.Open(served.model)
	if err != nil {
		return err
	}
	k := card{
		Model: record.Model, Step: c.Step, Version: programVersion(), Begun: record.Version, Started: record.Started.Format("2006-01-02"),
		Config: record.Config, Plan: record.Plan, DataDigest: record.DataDigest, ValidationDigest: record.ValidationDigest,
		Proof: result.Proof, BaseModel: e.baseName, Settings: cardSettings(record),
	}
	if record.WarmStart != nil {
		k.Settings = append(k.Settings, [2]string{"started from", flat(record.WarmStart.Path)})
	}
	for i := range k.Config.Data.Sources {
		k.Config.Data.Sources[i].Path = flat(k.Config.Data.Sources[i].Path)
	}
	name, _ := base.String("general.name")
	k.Base = flat(name)
	if r, err := hub.ParseReference(record.Config.Model); err == nil {
		k.Base = record.Config.Model
		if k.BaseModel == "" {
			k.BaseModel = r.Owner + "/" + r.Repo
		}
	}
	if k.Base == "" {
		k.Base = filepath.Base(record.Model.Path)
	}
	k.Title = strings.TrimSuffix(filepath.Base(e.output), filepath.Ext(e.output))
	k.describe(e, result, base)
	if k.Stages, k.Changes, err = cardStages(e.run, record, c.Step); err != nil {
		return err
	}
	if k.Metrics, err = cardMetrics(e.run, c); err != nil {
		return err
	}
	var text strings.Builder
	if err := cardTemplate.Execute(&text, k); err != nil {
		return err
	}
	return writeWhole(e.card, []byte(text.String()))
}

// describe says what the export is, how it is used, and under which licence its base is.
func (k *card) describe(e *exporter, result exported, base *gguf.File) {
	file := filepath.Base(e.output)
	word := spell.Word(file)
	k.Relation, k.Library, k.Tags = "adapter", "gguf", []string{"gguf", "lora", "cftune"}
	k.Exported = fmt.Sprintf("%s, %s, %d bytes", file, result.Type, result.Bytes)
	trained := "fine-tuned"
	if slices.ContainsFunc(k.Config.Objective.Stages, func(s config.Stage) bool { return s.Mix["cft"] > 0 }) {
		trained = "trained by critique fine-tuning"
		k.Tags = append(k.Tags, "critique-fine-tuning")
	}
	switch e.format {
	case "peft":
		k.Library, k.Tags[0] = "peft", "peft"
		k.What = fmt.Sprintf("A LoRA adapter of rank %d over %s, %s.", result.Rank, k.Base, trained)
		k.Usage = fmt.Sprintf("With Hugging Face's PEFT:\n\n    from transformers import AutoModelForCausalLM\n    from peft import PeftModel\n"+
			"    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(%q), %q)", k.BaseModel, file)
	case "merged":
		k.Relation = "finetune"
		if result.Type != "F32" && result.Type != "F16" && result.Type != "BF16" {
			k.Relation = "quantized"
		}
		k.What = fmt.Sprintf("%s, %s with a LoRA adapter of rank %d that is merged into its weights; a GGUF file.", k.Base, trained, result.Rank)
		k.Usage = fmt.Sprintf("With llama.cpp, or what is built on it:\n\n    llama-cli -m %s\n    cftune generate --model %s --prompt \"...\"", word, word)
	default:
		k.What = fmt.Sprintf("A LoRA adapter of rank %d over %s, %s; a GGUF file that llama.cpp loads beside the base model.", result.Rank, k.Base, trained)
		k.Usage = fmt.Sprintf("With llama.cpp, and the very base model that is named above:\n\n    llama-cli -m BASE.gguf --lora %s\n    cftune generate --model BASE.gguf --adapter %s --prompt \"...\"", word, word)
	}
	if e.modelfile != "" {
		k.Usage += "\n\nWith Ollama:\n\n    ollama create NAME -f " + spell.Word(filepath.Base(e.modelfile))
	}
	if s := k.Config.Chat.System; s != "" {
		k.Usage += "\n\nIt was trained with this system message:\n\n    " + strings.ReplaceAll(s, "\n", "\n    ")
	}
	license, _ := base.String("general.license")
	k.License = flat(license)
	named := k.License
	if k.License != "" && !licenceName.MatchString(k.License) {
		k.License = "other" // the front matter has names only
	}
	k.Licences = "The base model's file says no licence; what holds for it holds for this too."
	if k.License != "" {
		k.Licences = fmt.Sprintf("The base model's file says that its licence is %s; it holds for what is made of it.", named)
	}
	k.Licences += " The data's licences are those of its owners; cftune does not know them: look before you publish."
}

func cardSettings(record trainer.Record) [][2]string {
	run := record.Config
	batch := run.Train.GlobalBatch
	size := fmt.Sprintf("%d examples", batch.Examples)
	switch {
	case batch.Tokens > 0:
		size = fmt.Sprintf("%d tokens", batch.Tokens)
	case batch.Packs > 0:
		size = fmt.Sprintf("%d packs", batch.Packs)
	}
	o := run.Optimizer
	return [][2]string{
		{"adapter", fmt.Sprintf("rank %d, alpha %g, dropout %g, rsLoRA %v, on %s", run.Adapter.Rank, run.Adapter.Alpha, run.Adapter.Dropout, run.Adapter.RSLoRA, flat(run.Adapter.Targets))},
		{"step", size},
		{"pack", fmt.Sprintf("%d tokens", run.Train.SeqLen)},
		{"epochs", fmt.Sprint(run.Train.Epochs)},
		{"optimizer", fmt.Sprintf("AdamW, learning rate %g (%s, %d warmup steps), betas %v, weight decay %g, gradient norm at most %g", o.LR, o.Schedule, o.WarmupSteps, o.Betas, o.WeightDecay, o.MaxGradNorm)},
		{"seed", fmt.Sprint(run.Seed)},
		{"precision", "weights as they are stored, gradients and adapter in F32"},
	}
}

// cardStages tells the configuration's stages, and the changes up to a step.
func cardStages(run string, record trainer.Record, step int) ([]string, []cardChange, error) {
	journal, _, err := trainer.ReadJournal(run)
	if err != nil {
		return nil, nil, err
	}
	var changes []cardChange
	for _, change := range journal {
		if change.Step < step {
			changes = append(changes, cardChange{change.Step, strings.Join(stageTexts(change.Stages), "; then ")})
		}
	}
	return stageTexts(record.Config.Objective.Stages), changes, nil
}

func stageTexts(stages []config.Stage) []string {
	var texts []string
	for _, s := range stages {
		var mix []string
		for _, name := range slices.Sorted(maps.Keys(s.Mix)) {
			mix = append(mix, fmt.Sprintf("%s %g", name, s.Mix[name]))
		}
		text := strings.Join(mix, " + ")
		for what, n := range map[string]int{"step %d": s.Until.Steps, "epoch %d": s.Until.Epochs, "%d tokens": s.Until.Tokens, "a plateau of %d validations": s.Until.Plateau} {
			if n > 0 {
				text += " until " + fmt.Sprintf(what, n)
			}
		}
		texts = append(texts, text)
	}
	return texts
}

func cardMetrics(run string, c *checkpoint.Checkpoint) ([][2]string, error) {
	rows := [][2]string{
		{"examples seen", fmt.Sprint(c.Counters.Examples)},
		{"tokens, learned ones", fmt.Sprintf("%d, %d", c.Counters.Tokens, c.Counters.Targets)},
	}
	losses, err := metrics.Losses(filepath.Join(run, checkpoint.MetricsName), math.MaxInt)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if n := min(c.Step, len(losses)); n > 0 {
		rows = append(rows, [2]string{"training loss, first step and last", fmt.Sprintf("%.4f, %.4f", losses[0], losses[n-1])})
	}
	if c.Best != nil {
		rows = append(rows, [2]string{"lowest validation loss", fmt.Sprintf("%.4f after step %d", c.Best.Loss, c.Best.Step)})
	}
	if c.Counters.Skipped > 0 {
		rows = append(rows, [2]string{"steps skipped (loss or gradient not finite)", fmt.Sprint(c.Counters.Skipped)})
	}
	return rows, nil
}

var licenceName = regexp.MustCompile(`^[A-Za-z0-9.+-]+$`)

// flat makes a text fit into a table's cell and a line of YAML.
func flat(text string) string {
	return strings.NewReplacer("\n", " ", "\r", " ", "|", "/").Replace(strings.TrimSpace(text))
}
