package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	yaml "go.yaml.in/yaml/v3"

	"bailiwick/controlplane/internal/manifest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func (a *app) setCommand() *cobra.Command {
	var zoneName, etag string
	var dry bool
	c := &cobra.Command{Use: "set KIND NAME FIELD=VALUE...", Short: "Write some fields of one resource, and leave the others as they are", Args: cobra.MinimumNArgs(3), ValidArgs: kindNames(),
		Long: `Write some fields of one resource. Fields are named as in manifests, with or without "spec." before them; values are YAML,
so that a list is [a, b]; FIELD= without a value unsets it. What others change meanwhile is kept; --etag refuses if they did.
  bailiwick set plan free quota.units=20000 rate_limit.requests_per_second=10
  bailiwick set api emea/orders hosts='[orders.emea.example.test, o.emea.example.test]' docs=`,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kindOf(args[0])
			if err != nil {
				return err
			}
			doc, mask, err := fields(k, args[1], args[2:])
			if err != nil {
				return err
			}
			doc.Resource.Etag = etag
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				req := &adminv1.ApplyRequest{Resources: []*adminv1.Resource{doc.Resource}, UpdateMask: mask, DryRun: dry, RequestId: rand.Text()}
				call := func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Apply(ctx, req) }
				var resp *adminv1.ApplyResponse
				if k.Zonal || zoneName != "" {
					resp, err = around(ctx, c, zoneName, call)
				} else {
					resp, err = ask(ctx, c, c.urls, call)
				}
				if err != nil {
					return err
				}
				out := &applied{Changes: []change{}, Warnings: []string{}, Flows: []flow{}}
				out.add(resp, true)
				return a.printApply(out, dry)
			})
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "ask this zone")
	c.Flags().StringVar(&etag, "etag", "", "refuse if the resource is not at this etag")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would change, and which flows it opens and closes")
	return c
}

// fields makes a document of assignments, read as strictly as a manifest, and the mask of what it writes.
func fields(k manifest.Kind, name string, assignments []string) (manifest.Document, []string, error) {
	var none manifest.Document
	var mask []string
	spec := map[string]any{}
	for _, one := range assignments {
		path, text, ok := strings.Cut(one, "=")
		segments := strings.Split(strings.TrimPrefix(path, "spec."), ".")
		if !ok || slices.Contains(segments, "") {
			return none, nil, misuse("%q is not FIELD=VALUE, as quota.units=5", one)
		}
		mask = append(mask, "spec."+strings.Join(segments, "."))
		if text == "" {
			continue
		}
		var value yaml.Node
		if err := yaml.Unmarshal([]byte(text), &value); err != nil || len(value.Content) != 1 {
			return none, nil, misuse("%s: %q is no YAML value: put it in quotes if text is meant", path, text)
		}
		at := spec
		for _, s := range segments[:len(segments)-1] {
			next, ok := at[s].(map[string]any)
			if !ok {
				if _, taken := at[s]; taken {
					return none, nil, misuse("%s is given twice, as a value and as a group of fields", path)
				}
				next = map[string]any{}
				at[s] = next
			}
			at = next
		}
		last := segments[len(segments)-1]
		if _, taken := at[last]; taken {
			return none, nil, misuse("%s is given twice", path)
		}
		at[last] = value.Content[0]
	}
	text, err := yaml.Marshal(map[string]any{"kind": k.Name, "name": name, "spec": spec})
	if err != nil {
		return none, nil, fmt.Errorf("write what is to be set: %w", err)
	}
	docs, err := manifest.Parse("set "+strings.ToLower(k.Name)+" "+name, text)
	if err != nil {
		return none, nil, err
	}
	return docs[0], mask, nil
}
