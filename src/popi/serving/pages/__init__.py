"""The pages: `/me`, where users see and change what is known about them, and `/admin` for the team.

    app          the ASGI application: dispatches requests to pages and actions
    settings     the settings of the pages and of the team's sign-in
    sessions     signed links, cookies and sessions; login and oidc, the team's sign-in
    subject      the profile that a request is about
    forms        read forms, and check that one of our pages sent them
    profile      the pages of one profile; profile_data, their data from the store; view, that data as sentences
    drafts       rejected input, to be shown again
    actions      what forms do; changes, what a button changes in a summary
    team         the team's pages
    tryout       answer a prompt with and without the summary
    render       templates, static files and headers; strings, all texts of the pages (strings.toml, languages)
    colour       the product's colour and its contrast

`templates/` holds the HTML, `static/` the style sheet and a small script; the pages also work without the script.
"""
