// Package study compares ways of training on the same questions: one file describes model, data, arms, seeds, budget and
// the claims that are to be decided; the package trains and scores every arm with every seed and reports what came out.
//
// Everything is written down as it is done (study.json, ordinary run directories, texts line by line), so that a study
// that was killed at any moment goes on when it is started again. The claims and the rule by which each is called "yes",
// "no" or "not shown" are part of the file and are recorded before the first run: a study whose file has changed since is
// refused. Test rows are only scored; nothing is chosen on them.
//
// The package knows no model: training and writing texts come to it behind Engine.
package study
