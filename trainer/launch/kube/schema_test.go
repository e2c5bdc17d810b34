package kube

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	jobsetv1alpha2 "sigs.k8s.io/jobset/api/jobset/v1alpha2"
	"sigs.k8s.io/yaml"
)

//go:embed testdata/schemas
var schemaFiles embed.FS

// schemas are the documents that scripts/kube-schemas has written, and which kind each of their definitions is for.
var schemas = map[string]map[string]string{
	"kubernetes-v1.31.14": {"Job": "io.k8s.api.batch.v1.Job", "ConfigMap": "io.k8s.api.core.v1.ConfigMap"},
	"kubernetes-v1.37.2":  {"Job": "io.k8s.api.batch.v1.Job", "ConfigMap": "io.k8s.api.core.v1.ConfigMap"},
	"jobset-v0.8.2":       {"JobSet": "root"},
	"jobset-v0.10.1":      {"JobSet": "root"},
	"trainjob-v2.0.0":     {"TrainJob": "root"},
}

// loadSchemas reads a document.
func loadSchemas(t *testing.T, name string) map[string]any {
	t.Helper()
	f, err := schemaFiles.Open("testdata/schemas/" + name + ".json.gz")
	require.NoError(t, err)
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	var definitions map[string]any
	require.NoError(t, json.NewDecoder(z).Decode(&definitions))
	return definitions
}

// closed returns a schema with its references put in and every object closed: what it does not name is an error, as for a
// server that validates strictly.
func closed(t *testing.T, definitions map[string]any, v any) any {
	t.Helper()
	switch v := v.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = closed(t, definitions, v[i])
		}
		return list
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			to := definitions[ref[strings.LastIndexByte(ref, '/')+1:]]
			require.NotNil(t, to, ref)
			return closed(t, definitions, to)
		}
		out := map[string]any{}
		for key, below := range v {
			out[key] = closed(t, definitions, below)
		}
		if all, ok := out["allOf"].([]any); ok && len(all) == 1 && out["type"] == nil {
			return all[0] // OpenAPI's way to describe a reference
		}
		_, open := out["additionalProperties"]
		if out["properties"] != nil && !open && out["type"] == "object" && out["x-kubernetes-preserve-unknown-fields"] != true {
			out["additionalProperties"] = false
		}
		return out
	}
	return v
}

// openMetadata lets a CRD's schema, which leaves metadata to the server, take that of any object.
func openMetadata(schema map[string]any) {
	properties := schema["properties"].(map[string]any)
	if meta := properties["metadata"].(map[string]any); meta["properties"] == nil {
		delete(meta, "additionalProperties")
	}
}

// validator is that of a kind in a document.
func validator(t *testing.T, document, definition string) *validate.SchemaValidator {
	t.Helper()
	definitions := loadSchemas(t, document)
	tree := closed(t, definitions, definitions[definition]).(map[string]any)
	openMetadata(tree)
	text, err := json.Marshal(tree)
	require.NoError(t, err)
	schema := &spec.Schema{}
	require.NoError(t, json.Unmarshal(text, schema))
	return validate.NewSchemaValidator(schema, nil, "", strfmt.Default)
}

// documents splits what YAML has returned.
func documents(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	var list []map[string]any
	for _, part := range bytes.Split(text, []byte("---\n"))[1:] {
		var object map[string]any
		require.NoError(t, yaml.UnmarshalStrict(part, &object))
		list = append(list, object)
	}
	return list
}

// validateAll validates manifests by every version's schema, and strictly by the Go types.
func validateAll(t *testing.T, text []byte) {
	t.Helper()
	for _, object := range documents(t, text) {
		kind := object["kind"].(string)
		versions := 0
		for document, kinds := range schemas {
			definition, ok := kinds[kind]
			if !ok {
				continue
			}
			versions++
			assert.NoError(t, validator(t, document, definition).Validate(object).AsError(), "%s by %s", kind, document)
		}
		want := 2
		if kind == "TrainJob" {
			want = 1 // of which one release is to be had
		}
		assert.Equal(t, want, versions, "schemas for %s", kind)
		types := map[string]any{"ConfigMap": &corev1.ConfigMap{}, "Job": &batchv1.Job{}, "JobSet": &jobsetv1alpha2.JobSet{}, "TrainJob": &TrainJob{}}
		content, err := json.Marshal(object)
		require.NoError(t, err)
		require.NoError(t, yaml.UnmarshalStrict(content, types[kind]))
		again, err := json.Marshal(types[kind])
		require.NoError(t, err)
		var back map[string]any
		require.NoError(t, json.Unmarshal(again, &back))
		delete(back, "status")
		prune(back)
		assert.Equal(t, object, back, "the types hold all of %s", kind)
	}
}

// A validator that lets everything pass would be worth nothing.
func TestSchemasFindMistakes(t *testing.T) {
	text, err := rendered(t, "job").YAML()
	require.NoError(t, err)
	break_ := map[string]func(spec map[string]any){
		"unknown key":  func(s map[string]any) { s["backofLimit"] = 3.0 },
		"wrong type":   func(s map[string]any) { s["backoffLimit"] = "three" },
		"missing":      func(s map[string]any) { delete(s, "template") },
		"unknown deep": func(s map[string]any) { containerOf(s)["imagePolicy"] = "Always" },
		"wrong deep":   func(s map[string]any) { containerOf(s)["command"] = "cftune" },
	}
	for name, change := range break_ {
		for _, document := range []string{"kubernetes-v1.31.14", "kubernetes-v1.37.2"} {
			job := documents(t, text)[1]
			v := validator(t, document, schemas[document]["Job"])
			require.NoError(t, v.Validate(job).AsError())
			change(job["spec"].(map[string]any))
			assert.Error(t, v.Validate(job).AsError(), "%s by %s", name, document)
		}
	}
	for _, c := range []struct{ document, form, kind string }{{"jobset-v0.8.2", "jobset", "JobSet"}, {"jobset-v0.10.1", "jobset", "JobSet"}, {"trainjob-v2.0.0", "trainjob", "TrainJob"}} {
		text, err := rendered(t, c.form).YAML()
		require.NoError(t, err)
		object := documents(t, text)[1]
		object["spec"].(map[string]any)["suspended"] = true
		assert.Error(t, validator(t, c.document, schemas[c.document][c.kind]).Validate(object).AsError(), c.document)
	}
}

func containerOf(spec map[string]any) map[string]any {
	pod := spec["template"].(map[string]any)["spec"].(map[string]any)
	return pod["containers"].([]any)[0].(map[string]any)
}
