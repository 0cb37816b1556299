package main

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// pages makes lists whole: what a node answers in pages, a command sees as one. All pages come from one node.
func pages(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, call connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, call)
		req, ok := call.Any().(proto.Message)
		if err != nil || !ok {
			return resp, err
		}
		m := req.ProtoReflect()
		at := m.Descriptor().Fields().ByName("page_token")
		if at == nil {
			return resp, nil
		}
		defer m.Clear(at) // the request may be asked of another node
		whole := resp.Any().(proto.Message)
		for token := tokenOf(whole); token != ""; {
			m.Set(at, protoreflect.ValueOfString(token))
			more, err := next(ctx, call)
			if err != nil {
				return nil, err
			}
			token = tokenOf(more.Any().(proto.Message))
			proto.Merge(whole, more.Any().(proto.Message))
		}
		return resp, nil
	}
}

func tokenOf(m proto.Message) string {
	r := m.ProtoReflect()
	return r.Get(r.Descriptor().Fields().ByName("next_page_token")).String()
}

const filterHelp = `only what fits, such as "region=eu-west NOT status=connected"; signs = != : (holds) < <= > >=, AND, OR, NOT, (), * at either end`

// filtered gives a list a filter.
func filtered(c *cobra.Command, to *string) *cobra.Command {
	c.Flags().StringVar(to, "filter", "", filterHelp)
	return c
}
